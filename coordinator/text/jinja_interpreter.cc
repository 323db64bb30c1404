#include "coordinator/text/jinja_interpreter.h"

#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <ctime>

#include "coordinator/text/jinja_builtins.h"
#include "coordinator/text/jinja_operators.h"

namespace lowkey::coordinator::jinja {
namespace {

// Of statements and expressions within each other at run time, macros that call themselves included.
constexpr int kMaxDepth = 600;
constexpr int64_t kMaxRange = 100'000;

Value strftime_now(const Arguments& arguments) {
  const Value* format = arguments.find(0, "format");
  if (!format || !format->string()) throw TemplateError{"strftime_now expects a format"};
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[256];
  return Value(std::string(buffer, std::strftime(buffer, sizeof buffer, format->string()->c_str(), &local)));
}

Value range(const Arguments& arguments) {
  const auto& given = arguments.positional;
  if (given.empty() || given.size() > 3) throw TemplateError{"range expects one to three integers"};
  const int64_t begin = given.size() > 1 ? given[0].as_int() : 0;
  const int64_t end = given[given.size() > 1 ? 1 : 0].as_int();
  const int64_t step = given.size() > 2 ? given[2].as_int() : 1;
  if (step == 0) throw TemplateError{"range: the step is zero"};
  List items;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) throw TemplateError{"range: too long"};
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return Value(std::move(items));
}

Value make_dict(const Arguments& arguments) {
  Dict dict;
  for (const auto& [name, value] : arguments.named) dict.set(name, value);
  return Value(std::move(dict));
}

}  // namespace

struct Interpreter::Depth {
  explicit Depth(Interpreter& interpreter) : depth(interpreter.depth_) {
    interpreter.budget_.step();
    if (depth >= kMaxDepth) throw TemplateError{"nests too deep"};
    ++depth;
  }
  ~Depth() { --depth; }
  int& depth;
};

const Value* Interpreter::Scope::find(std::string_view name) const {
  for (const Scope* scope = this; scope; scope = scope->parent) {
    for (const auto& [key, value] : scope->names) {
      if (key == name) return &value;
    }
  }
  return nullptr;
}

void Interpreter::Scope::set(std::string_view name, Value value) {
  for (auto& [key, old] : names) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  names.emplace_back(name, std::move(value));
}

Interpreter::~Interpreter() {
  for (const auto& names : namespaces_) names->clear();
}

void Interpreter::add_globals() {
  define("range", Value(Function(range)));
  define("dict", Value(Function(make_dict)));
  define("strftime_now", Value(Function(strftime_now)));
  define("namespace",
         Value(Function([this](const Arguments& arguments) { return make_namespace(arguments); })));
  define("raise_exception", Value(Function([](const Arguments& arguments) -> Value {
           const Value* message = arguments.find(0, "message");
           throw TemplateError{message ? message->text() : "refused"};
         })));
}

Value Interpreter::make_namespace(const Arguments& arguments) {
  auto names = std::make_shared<Dict>();
  names->is_namespace = true;
  for (const auto& [name, value] : arguments.named) names->set(name, value);
  budget_.bytes(sizeof(Dict));
  namespaces_.push_back(names);
  return Value(std::move(names));
}

std::string Interpreter::run(const Block& block) {
  add_globals();
  std::string out;
  execute(block, root_, out);
  return out;
}

void Interpreter::write(std::string& out, std::string_view text) {
  budget_.bytes(text.size());
  if (text.size() > limits_.output_bytes - std::min(limits_.output_bytes, out.size())) {
    throw TemplateError{fmt::format("makes more than {} bytes of text", limits_.output_bytes)};
  }
  out += text;
}

Interpreter::Flow Interpreter::execute(const Block& block, Scope& scope, std::string& out) {
  for (const auto& statement : block) {
    const Flow flow = execute(*statement, scope, out);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::execute(const Statement& statement, Scope& scope, std::string& out) {
  const Depth depth(*this);
  line_ = statement.line;
  switch (statement.kind) {
    case StatementKind::kText:
      write(out, statement.text);
      break;
    case StatementKind::kOutput:
      write(out, evaluate(*statement.value, scope).text());
      break;
    case StatementKind::kIf:
      return execute_if(statement, scope, out);
    case StatementKind::kFor:
      execute_for(statement, scope, out);
      break;
    case StatementKind::kSet:
      execute_set(statement, scope);
      break;
    case StatementKind::kSetBlock: {
      std::string text;
      execute(statement.body, scope, text);
      scope.set(statement.targets[0], Value(std::move(text)));
      break;
    }
    case StatementKind::kMacro:
      define_macro(statement, scope);
      break;
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::execute_if(const Statement& statement, Scope& scope, std::string& out) {
  for (const auto& branch : statement.branches) {
    if (!branch.condition || evaluate(*branch.condition, scope).truth())
      return execute(branch.body, scope, out);
  }
  return Flow::kNext;
}

void Interpreter::unpack(const std::vector<std::string>& targets, Value value, Scope& scope) {
  if (targets.size() == 1) return scope.set(targets[0], std::move(value));
  const List parts = value.items();
  if (parts.size() != targets.size()) {
    throw TemplateError{fmt::format("expected {} values to unpack, found {}", targets.size(), parts.size())};
  }
  for (size_t i = 0; i < parts.size(); ++i) scope.set(targets[i], parts[i]);
}

Value Interpreter::loop_value(const List& items, size_t index) const {
  const auto number = [](size_t value) { return Value(static_cast<int64_t>(value)); };
  Dict loop;
  loop.set("index", number(index + 1));
  loop.set("index0", number(index));
  loop.set("first", Value(index == 0));
  loop.set("last", Value(index + 1 == items.size()));
  loop.set("length", number(items.size()));
  loop.set("revindex", number(items.size() - index));
  loop.set("revindex0", number(items.size() - index - 1));
  if (index > 0) loop.set("previtem", items[index - 1]);
  if (index + 1 < items.size()) loop.set("nextitem", items[index + 1]);
  return Value(std::move(loop));
}

void Interpreter::execute_for(const Statement& statement, Scope& scope, std::string& out) {
  List items = evaluate(*statement.value, scope).items();
  budget_.bytes(items.size() * sizeof(Value));
  if (statement.condition) {
    List kept;
    for (Value& item : items) {
      Scope turn{&scope, {}};
      unpack(statement.targets, item, turn);
      if (evaluate(*statement.condition, turn).truth()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    execute(statement.otherwise, scope, out);
    return;
  }
  for (size_t i = 0; i < items.size(); ++i) {
    budget_.step();
    Scope turn{&scope, {}};
    unpack(statement.targets, items[i], turn);
    turn.set("loop", loop_value(items, i));
    if (execute(statement.body, turn, out) == Flow::kBreak) return;
  }
}

void Interpreter::execute_set(const Statement& statement, Scope& scope) {
  Value value = evaluate(*statement.value, scope);
  if (statement.text.empty()) return unpack(statement.targets, std::move(value), scope);
  const Value* target = scope.find(statement.targets[0]);
  Dict* names = target ? target->dict() : nullptr;
  if (!names || !names->is_namespace) {
    throw TemplateError{
        fmt::format("'{}' is not a namespace, its attributes cannot be set", statement.targets[0])};
  }
  names->set(statement.text, std::move(value));
}

void Interpreter::define_macro(const Statement& statement, Scope& scope) {
  scope.set(statement.text, Value(Function([this, &statement](const Arguments& arguments) {
              return call_macro(statement, arguments);
            })));
}

Value Interpreter::call_macro(const Statement& macro, const Arguments& arguments) {
  const int line = line_;
  if (arguments.positional.size() > macro.parameters.size()) {
    throw TemplateError{fmt::format("the macro '{}' takes {} arguments, found {}", macro.text,
                                    macro.parameters.size(), arguments.positional.size())};
  }
  Scope scope{&root_, {}};
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const auto& parameter = macro.parameters[i];
    const Value* given = arguments.find(i, parameter.name);
    scope.set(parameter.name, given                ? *given
                              : parameter.fallback ? evaluate(*parameter.fallback, scope)
                                                   : Value::undefined(parameter.name));
  }
  std::string out;
  execute(macro.body, scope, out);
  line_ = line;
  return Value(std::move(out));
}

Value Interpreter::evaluate_operand(const Expression& expression, size_t index, const Scope& scope) {
  return evaluate(*expression.operands[index], scope);
}

Value Interpreter::evaluate(const Expression& expression, const Scope& scope) {
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

Arguments Interpreter::evaluate_arguments(const Expression& expression, const Scope& scope) {
  Arguments arguments;
  for (size_t i = 1; i < expression.operands.size(); ++i) {
    arguments.positional.push_back(evaluate_operand(expression, i, scope));
  }
  for (const auto& [name, value] : expression.named)
    arguments.named.emplace_back(name, evaluate(*value, scope));
  return arguments;
}

Value Interpreter::evaluate_call(const Expression& expression, const Scope& scope) {
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
  return (*function.function())(arguments);
}

Value Interpreter::evaluate_arithmetic(const Expression& expression, const Scope& scope) {
  const Value left = evaluate_operand(expression, 0, scope);
  const Value right = evaluate_operand(expression, 1, scope);
  line_ = expression.line;
  return arithmetic(expression.name, left, right, budget_);
}

Value Interpreter::evaluate_comparison(const Expression& expression, const Scope& scope) {
  Value left = evaluate_operand(expression, 0, scope);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate_operand(expression, i + 1, scope);
    if (!holds(expression.operators[i], left, right, budget_)) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Interpreter::evaluate_slice(const Expression& expression, const Scope& scope) {
  Value parts[3];
  for (size_t i = 0; i < 3; ++i) {
    if (expression.operands[i + 1]) parts[i] = evaluate_operand(expression, i + 1, scope);
  }
  return slice_of(evaluate_operand(expression, 0, scope), parts[0], parts[1], parts[2], budget_);
}

Value Interpreter::evaluate_dict(const Expression& expression, const Scope& scope) {
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
