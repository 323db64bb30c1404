// What the expressions of a template are worth.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/text/jinja_ast.h"

namespace lowkey::coordinator::jinja {

// A conversation of 10,000 messages takes a million steps with the wordiest templates.
struct Limits {
  size_t steps = 2'000'000;          // expressions, statements and turns of loops
  size_t bytes = size_t{192} << 20;  // of all strings and lists made on the way
  size_t output_bytes = kMostText;
};

// Names of the template, of one turn of a loop, or of one call of a macro.
struct Scope {
  const Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> names;
  const Value* find(std::string_view name) const;
  void set(std::string_view name, Value value);
};

// The base of what runs whole templates. Throws TemplateError.
class Evaluator {
 public:
  int line() const { return line_; }  // where it stopped

 protected:
  explicit Evaluator(const Limits& limits) : budget_(limits.steps, limits.bytes) {}

  // One more expression or statement within the others, while it lives.
  class Depth {
   public:
    explicit Depth(Evaluator& evaluator);
    ~Depth() { --depth_; }
    Depth(const Depth&) = delete;

   private:
    int& depth_;
  };

  Value evaluate(const Expression& expression, const Scope& scope);

  Budget budget_;
  int line_ = 1;

 private:
  Value evaluate_operand(const Expression& expression, size_t index, const Scope& scope);
  Value evaluate_call(const Expression& expression, const Scope& scope);
  Value evaluate_comparison(const Expression& expression, const Scope& scope);
  Value evaluate_slice(const Expression& expression, const Scope& scope);
  Value evaluate_dict(const Expression& expression, const Scope& scope);
  Value evaluate_arithmetic(const Expression& expression, const Scope& scope);
  Arguments evaluate_arguments(const Expression& expression, const Scope& scope);

  int depth_ = 0;
};

}  // namespace lowkey::coordinator::jinja
