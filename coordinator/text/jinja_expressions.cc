#include "coordinator/text/jinja_expressions.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <charconv>

#include "coordinator/text/jinja_builtins.h"
#include "coordinator/text/jinja_tests.h"

namespace lowkey::coordinator::jinja {
namespace {

// Far beyond real templates; it keeps recursion over the tree within a thread's stack.
constexpr int kMaxExpressionDepth = 100;

}  // namespace

// Counts recursion of the parser itself, e.g. of brackets.
struct ExpressionParser::Nesting {
  explicit Nesting(ExpressionParser& parser) : parser(parser) {
    if (++parser.nesting_ > 3 * kMaxExpressionDepth) {  // one bracket passes three of these
      parser.fail(fmt::format("an expression nests deeper than {}", kMaxExpressionDepth));
    }
  }
  ~Nesting() { --parser.nesting_; }
  ExpressionParser& parser;
};

std::unique_ptr<Expression> ExpressionParser::make(ExpressionKind kind, std::string name) const {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = peek().line;
  expression->name = std::move(name);
  return expression;
}

void ExpressionParser::add(Expression& to, ExpressionPtr operand) const {
  if (operand) deepen(to, *operand);
  to.operands.push_back(std::move(operand));
}
void ExpressionParser::deepen(Expression& to, const Expression& operand) const {
  to.depth = std::max(to.depth, operand.depth + 1);
  if (to.depth > kMaxExpressionDepth)
    fail(fmt::format("an expression nests deeper than {}", kMaxExpressionDepth));
}

ExpressionPtr ExpressionParser::binary(ExpressionKind kind, std::string name, ExpressionPtr left,
                                       ExpressionPtr right) const {
  auto expression = make(kind, std::move(name));
  add(*expression, std::move(left));
  add(*expression, std::move(right));
  return expression;
}

ExpressionPtr ExpressionParser::parse_tuple() {
  ExpressionPtr first = parse_expression();
  if (!is_operator(",")) return first;
  auto list = make(ExpressionKind::kList);
  add(*list, std::move(first));
  while (accept(",")) add(*list, parse_expression());
  return list;
}

ExpressionPtr ExpressionParser::parse_expression() {
  const Nesting nesting(*this);
  ExpressionPtr value = parse_or();
  while (accept_name("if")) {
    auto conditional = make(ExpressionKind::kConditional);
    add(*conditional, std::move(value));
    add(*conditional, parse_or());
    add(*conditional, accept_name("else") ? parse_expression() : nullptr);
    value = std::move(conditional);
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  while (accept_name("or")) left = binary(ExpressionKind::kOr, {}, std::move(left), parse_and());
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  while (accept_name("and")) left = binary(ExpressionKind::kAnd, {}, std::move(left), parse_not());
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  const Nesting nesting(*this);
  if (!accept_name("not")) return parse_comparison();
  auto expression = make(ExpressionKind::kNot);
  add(*expression, parse_not());
  return expression;
}

std::string ExpressionParser::accept_comparison() {
  for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
    if (accept(op)) return std::string(op);
  }
  if (accept_name("in")) return "in";
  if (is_name("not") && is_name("in", 1)) {
    take();
    take();
    return "not in";
  }
  return {};
}

ExpressionPtr ExpressionParser::parse_comparison() {
  ExpressionPtr left = parse_sum();
  std::string op = accept_comparison();
  if (op.empty()) return left;
  auto chain = make(ExpressionKind::kComparison);
  add(*chain, std::move(left));
  for (; !op.empty(); op = accept_comparison()) {
    chain->operators.push_back(std::move(op));
    add(*chain, parse_sum());
  }
  return chain;
}

template <class Next>
ExpressionPtr ExpressionParser::parse_arithmetic(Names operators, Next next) {
  ExpressionPtr left = (this->*next)();
  while (true) {
    const auto op =
        std::find_if(operators.begin(), operators.end(), [&](auto text) { return is_operator(text); });
    if (op == operators.end()) return left;
    take();
    left = binary(ExpressionKind::kArithmetic, std::string(*op), std::move(left), (this->*next)());
  }
}
ExpressionPtr ExpressionParser::parse_sum() {
  return parse_arithmetic({"+", "-"}, &ExpressionParser::parse_concatenation);
}
ExpressionPtr ExpressionParser::parse_concatenation() {
  return parse_arithmetic({"~"}, &ExpressionParser::parse_product);
}
ExpressionPtr ExpressionParser::parse_product() {
  return parse_arithmetic({"*", "//", "/", "%"}, &ExpressionParser::parse_filtered);
}

ExpressionPtr ExpressionParser::parse_filtered() {
  ExpressionPtr value = parse_unary();
  while (true) {
    if (is_operator("**")) fail("the operator ** is not supported");
    if (accept("|")) {
      value = parse_filter(std::move(value));
    } else if (accept_name("is")) {
      value = parse_test(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::parse_unary() {
  const Nesting nesting(*this);
  if (accept("-")) {
    auto negation = make(ExpressionKind::kNegate);
    add(*negation, parse_unary());
    return negation;
  }
  if (accept("+")) return parse_unary();
  return parse_postfix(parse_primary());
}

ExpressionPtr ExpressionParser::parse_filter(ExpressionPtr value) {
  auto filter = make(ExpressionKind::kFilter, expect_name());
  if (!has_filter(filter->name)) fail(fmt::format("the filter '{}' is not supported", filter->name));
  add(*filter, std::move(value));
  if (accept("(")) parse_arguments(*filter);
  return filter;
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr value) {
  const bool negated = accept_name("not");
  auto test = make(ExpressionKind::kTest, expect_name());
  test->negated = negated;
  if (!has_test(test->name)) fail(fmt::format("the test '{}' is not supported", test->name));
  add(*test, std::move(value));
  if (accept("(")) {
    parse_arguments(*test);
  } else if (begins_operand()) {  // x is divisibleby 3
    add(*test, parse_postfix(parse_primary()));
  }
  return test;
}

bool ExpressionParser::begins_operand() const {
  const Token& token = peek();
  if (token.kind == TokenKind::kString || token.kind == TokenKind::kInteger ||
      token.kind == TokenKind::kFloat) {
    return true;
  }
  if (token.kind == TokenKind::kOperator) return token.text == "[" || token.text == "{";
  constexpr std::string_view kWords[] = {"else", "or", "and", "is", "if", "in", "not"};
  return token.kind == TokenKind::kName &&
         std::find(std::begin(kWords), std::end(kWords), token.text) == std::end(kWords);
}

void ExpressionParser::parse_arguments(Expression& call) {
  while (!accept(")")) {
    if (is_operator("*") || is_operator("**")) fail("arguments unpacked with * are not supported");
    if (peek().kind == TokenKind::kName && is_operator("=", 1)) {
      std::string name = take().text;
      take();
      ExpressionPtr value = parse_expression();
      deepen(call, *value);
      call.named.emplace_back(std::move(name), std::move(value));
    } else {
      add(call, parse_expression());
    }
    if (!is_operator(")")) expect(",");
  }
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr value) {
  while (true) {
    if (accept(".")) {
      if (peek().kind == TokenKind::kInteger) {
        value = binary(ExpressionKind::kIndex, {}, std::move(value), parse_primary());
        continue;
      }
      auto attribute = make(ExpressionKind::kAttribute, expect_name());
      add(*attribute, std::move(value));
      value = std::move(attribute);
    } else if (accept("[")) {
      value = parse_subscript(std::move(value));
    } else if (accept("(")) {
      auto call = make(ExpressionKind::kCall);
      add(*call, std::move(value));
      parse_arguments(*call);
      value = std::move(call);
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr value) {
  ExpressionPtr parts[3];
  int colons = 0;
  while (!is_operator("]")) {
    if (accept(":")) {
      if (++colons > 2) fail("a slice has at most two colons");
    } else {
      if (parts[colons]) fail(fmt::format("expected ']', found {}", found()));
      parts[colons] = parse_expression();
    }
  }
  take();
  if (colons == 0) {
    if (!parts[0]) fail("expected an index, found ']'");
    return binary(ExpressionKind::kIndex, {}, std::move(value), std::move(parts[0]));
  }
  auto slice = make(ExpressionKind::kSlice);
  add(*slice, std::move(value));
  for (ExpressionPtr& part : parts) add(*slice, std::move(part));
  return slice;
}

ExpressionPtr ExpressionParser::literal(Value value) const {
  auto expression = make(ExpressionKind::kLiteral);
  expression->literal = std::move(value);
  return expression;
}

ExpressionPtr ExpressionParser::parse_primary() {
  const Token& token = peek();
  switch (token.kind) {
    case TokenKind::kString:
      return parse_string();
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return parse_number();
    case TokenKind::kName:
      return parse_name();
    default:
      break;
  }
  if (accept("(")) return parse_bracketed();
  if (accept("[")) {
    auto list = make(ExpressionKind::kList);
    parse_items(*list, "]");
    return list;
  }
  if (accept("{")) return parse_dict();
  fail(fmt::format("expected an expression, found {}", found()));
}

ExpressionPtr ExpressionParser::parse_string() {
  std::string text;
  while (peek().kind == TokenKind::kString) text += take().text;  // neighbours join, as in Python
  return literal(Value(std::move(text)));
}

ExpressionPtr ExpressionParser::parse_number() {
  const Token& token = take();
  const char* const begin = token.text.data();
  const char* const end = begin + token.text.size();
  if (token.kind == TokenKind::kFloat) {
    double value = 0;
    if (std::from_chars(begin, end, value).ec != std::errc{})
      fail(fmt::format("the number {} is too large", token.text));
    return literal(Value(value));
  }
  int64_t value = 0;
  if (std::from_chars(begin, end, value).ec != std::errc{})
    fail(fmt::format("the number {} is too large", token.text));
  return literal(Value(value));
}

ExpressionPtr ExpressionParser::parse_name() {
  const std::string& name = take().text;
  if (name == "true" || name == "True") return literal(Value(true));
  if (name == "false" || name == "False") return literal(Value(false));
  if (name == "none" || name == "None") return literal(Value());
  return make(ExpressionKind::kName, name);
}

ExpressionPtr ExpressionParser::parse_bracketed() {
  auto list = make(ExpressionKind::kList);
  if (accept(")")) return list;
  ExpressionPtr first = parse_expression();
  if (accept(")")) return first;
  add(*list, std::move(first));
  expect(",");
  parse_items(*list, ")");
  return list;
}

void ExpressionParser::parse_items(Expression& list, std::string_view closer) {
  while (!accept(closer)) {
    add(list, parse_expression());
    if (!is_operator(closer)) expect(",");
  }
}

ExpressionPtr ExpressionParser::parse_dict() {
  auto dict = make(ExpressionKind::kDict);
  while (!accept("}")) {
    add(*dict, parse_expression());
    expect(":");
    add(*dict, parse_expression());
    if (!is_operator("}")) expect(",");
  }
  return dict;
}

}  // namespace lowkey::coordinator::jinja
