// Runs a parsed template.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/text/jinja_evaluator.h"

namespace lowkey::coordinator::jinja {

// One rendering. The template must outlive it.
class Interpreter : private Evaluator {
 public:
  explicit Interpreter(const Limits& limits = {}) : Evaluator(limits), limits_(limits) {}
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  void define(std::string_view name, Value value) { root_.set(name, std::move(value)); }
  // Throws TemplateError.
  std::string run(const Block& block);
  using Evaluator::line;

 private:
  enum class Flow { kNext, kBreak, kContinue };
  void add_globals();
  Flow execute(const Block& block, Scope& scope, std::string& out);
  Flow execute(const Statement& statement, Scope& scope, std::string& out);
  Flow execute_if(const Statement& statement, Scope& scope, std::string& out);
  void execute_for(const Statement& statement, Scope& scope, std::string& out);
  void execute_set(const Statement& statement, Scope& scope);
  void define_macro(const Statement& statement, Scope& scope);
  Value call_macro(const Statement& macro, const Arguments& arguments);
  void write(std::string& out, std::string_view text);
  static void unpack(const std::vector<std::string>& targets, Value value, Scope& scope);
  Value loop_value(const List& items, size_t index) const;
  Value make_namespace(const Arguments& arguments);

  Limits limits_;
  Scope root_;
  std::vector<std::shared_ptr<Dict>>
      namespaces_;  // they may refer to each other in circles, so they are emptied at the end
};

}  // namespace lowkey::coordinator::jinja
