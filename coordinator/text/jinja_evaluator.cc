#include "coordinator/text/jinja_evaluator.h"

#include <spdlog/fmt/fmt.h>

#include "coordinator/text/jinja_builtins.h"
#include "coordinator/text/jinja_operators.h"
#include "coordinator/text/jinja_tests.h"

namespace lowkey::coordinator::jinja {
namespace {

// Of statements and expressions within each other at run time, macros that call themselves included.
constexpr int kMaxDepth = 600;

}  // namespace

const Value* Scope::find(std::string_view name) const {
  for (const Scope* scope = this; scope; scope = scope->parent) {
    for (const auto& [key, value] : scope->names) {
      if (key == name) return &value;
    }
  }
  return nullptr;
}

void Scope::set(std::string_view name, Value value) {
  for (auto& [key, old] : names) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  names.emplace_back(name, std::move(value));
}

Evaluator::Depth::Depth(Evaluator& evaluator) : depth_(evaluator.depth_) {
  evaluator.budget_.step();
  if (depth_ >= kMaxDepth) throw TemplateError{"nests too deep"};
  ++depth_;
}

Value Evaluator::evaluate_operand(const Expression& expression, size_t index, const Scope& scope) {
  return evaluate(*expression.operands[index], scope);
}

Value Evaluator::evaluate(const Expression& expression, const Scope& scope) {
  const Depth depth(*this);
  line_ = expression.line;
  const auto operand = [&](size_t index) { return evaluate_operand(expression, index, scope); };
  switch (expression.kind) {
    case ExpressionKind::kLiteral:
      return expression.literal;
    case ExpressionKind::kName: {
      const Value* found = scope.find(expression.name);
      return found ? *found : Value::undefined(expression.name);
    }
    case ExpressionKind::kAttribute:
      return attribute_of(operand(0), expression.name);
    case ExpressionKind::kIndex:
      return item_of(operand(0), operand(1));
    case ExpressionKind::kSlice:
      return evaluate_slice(expression, scope);
    case ExpressionKind::kCall:
      return evaluate_call(expression, scope);
    case ExpressionKind::kFilter:
      return apply_filter(expression.name, operand(0), evaluate_arguments(expression, scope), budget_);
    case ExpressionKind::kTest:
      return Value(apply_test(expression.name, operand(0), evaluate_arguments(expression, scope), budget_) !=
                   expression.negated);
    case ExpressionKind::kNot:
      return Value(!operand(0).truth());
    case ExpressionKind::kNegate:
      return negate(operand(0));
    case ExpressionKind::kArithmetic:
      return evaluate_arithmetic(expression, scope);
    case ExpressionKind::kComparison:
      return evaluate_comparison(expression, scope);
    case ExpressionKind::kAnd: {
      Value left = operand(0);
      return left.truth() ? operand(1) : left;
    }
    case ExpressionKind::kOr: {
      Value left = operand(0);
      return left.truth() ? left : operand(1);
    }
    case ExpressionKind::kConditional:
      if (operand(1).truth()) return operand(0);
      return expression.operands[2] ? operand(2) : Value::undefined("a condition without else");
    case ExpressionKind::kList: {
      List items;
      for (size_t i = 0; i < expression.operands.size(); ++i) items.push_back(operand(i));
      return Value(std::move(items));
    }
    case ExpressionKind::kDict:
      return evaluate_dict(expression, scope);
  }
  return Value();
}

Arguments Evaluator::evaluate_arguments(const Expression& expression, const Scope& scope) {
  Arguments arguments;
  for (size_t i = 1; i < expression.operands.size(); ++i) {
    arguments.positional.push_back(evaluate_operand(expression, i, scope));
  }
  for (const auto& [name, value] : expression.named)
    arguments.named.emplace_back(name, evaluate(*value, scope));
  return arguments;
}

Value Evaluator::evaluate_call(const Expression& expression, const Scope& scope) {
  const Expression& callee = *expression.operands[0];
  Value function;
  if (callee.kind == ExpressionKind::kAttribute) {
    const Value self = evaluate_operand(callee, 0, scope);
    if (has_method(self, callee.name)) {
      const Arguments arguments = evaluate_arguments(expression, scope);
      line_ = expression.line;
      return call_method(callee.name, self, arguments, budget_);
    }
    function = attribute_of(self, callee.name);
    if (!function.function()) {
      throw TemplateError{
          fmt::format("the method '{}' of {} is not supported", callee.name, self.type_name())};
    }
  } else {
    function = evaluate(callee, scope);
  }
  if (function.is_undefined()) throw TemplateError{function.undefined_message()};
  if (!function.function())
    throw TemplateError{fmt::format("a value of type {} is not a function", function.type_name())};
  const Arguments arguments = evaluate_arguments(expression, scope);
  line_ = expression.line;
  Value result = (*function.function())(arguments);
  if (const auto* list = result.list()) budget_.bytes(list->size() * sizeof(Value));
  return result;
}

Value Evaluator::evaluate_arithmetic(const Expression& expression, const Scope& scope) {
  const Value left = evaluate_operand(expression, 0, scope);
  const Value right = evaluate_operand(expression, 1, scope);
  line_ = expression.line;
  return arithmetic(expression.name, left, right, budget_);
}

Value Evaluator::evaluate_comparison(const Expression& expression, const Scope& scope) {
  Value left = evaluate_operand(expression, 0, scope);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate_operand(expression, i + 1, scope);
    if (!holds(expression.operators[i], left, right, budget_)) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Evaluator::evaluate_slice(const Expression& expression, const Scope& scope) {
  Value parts[3];
  for (size_t i = 0; i < 3; ++i) {
    if (expression.operands[i + 1]) parts[i] = evaluate_operand(expression, i + 1, scope);
  }
  return slice_of(evaluate_operand(expression, 0, scope), parts[0], parts[1], parts[2], budget_);
}

Value Evaluator::evaluate_dict(const Expression& expression, const Scope& scope) {
  Dict dict;
  for (size_t i = 0; i + 1 < expression.operands.size(); i += 2) {
    const Value key = evaluate_operand(expression, i, scope);
    if (!key.string())
      throw TemplateError{fmt::format("a dict's keys are strings, found {}", key.type_name())};
    dict.set(*key.string(), evaluate_operand(expression, i + 1, scope));
  }
  return Value(std::move(dict));
}

}  // namespace lowkey::coordinator::jinja
