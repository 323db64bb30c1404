#include "coordinator/text/jinja_interpreter.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "coordinator/text/jinja_globals.h"

namespace lowkey::coordinator::jinja {

Interpreter::~Interpreter() {
  for (const auto& names : namespaces_) names->clear();
}

void Interpreter::add_globals() {
  for (const auto& [name, function] : global_functions()) define(name, Value(function));
  define("namespace",
         Value(Function([this](const Arguments& arguments) { return make_namespace(arguments); })));
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

}  // namespace lowkey::coordinator::jinja
