// Runs a parsed template.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/text/jinja_ast.h"

namespace lowkey::coordinator::jinja {

// A conversation of 10,000 messages takes a million steps with the wordiest templates.
struct Limits {
  size_t steps = 2'000'000;          // expressions, statements and turns of loops
  size_t bytes = size_t{192} << 20;  // of all strings and lists made on the way
  size_t output_bytes = size_t{32} << 20;
};

// One rendering. The template must outlive it.
class Interpreter {
 public:
  explicit Interpreter(const Limits& limits = {}) : limits_(limits), budget_(limits.steps, limits.bytes) {}
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  void define(std::string_view name, Value value) { root_.set(name, std::move(value)); }
  // Throws TemplateError.
  std::string run(const Block& block);
  // Where it stopped.
  int line() const { return line_; }

 private:
  // Names of the template, of one turn of a loop, or of one call of a macro.
  struct Scope {
    const Scope* parent = nullptr;
    std::vector<std::pair<std::string_view, Value>> names;
    const Value* find(std::string_view name) const;
    void set(std::string_view name, Value value);
  };
  enum class Flow { kNext, kBreak, kContinue };
  struct Depth;

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

  Value evaluate(const Expression& expression, const Scope& scope);
  Value evaluate_operand(const Expression& expression, size_t index, const Scope& scope);
  Value evaluate_call(const Expression& expression, const Scope& scope);
  Value evaluate_comparison(const Expression& expression, const Scope& scope);
  Value evaluate_slice(const Expression& expression, const Scope& scope);
  Value evaluate_dict(const Expression& expression, const Scope& scope);
  Value evaluate_arithmetic(const Expression& expression, const Scope& scope);
  Arguments evaluate_arguments(const Expression& expression, const Scope& scope);

  Limits limits_;
  Budget budget_;
  Scope root_;
  std::vector<std::shared_ptr<Dict>>
      namespaces_;  // they may refer to each other in circles, so they are emptied at the end
  int line_ = 1;
  int depth_ = 0;
};

}  // namespace lowkey::coordinator::jinja
