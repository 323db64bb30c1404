#include "coordinator/text/jinja_parser.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <charconv>

#include "coordinator/text/jinja_builtins.h"

namespace lowkey::coordinator::jinja {
namespace {

// Far beyond real templates; they keep recursion over the tree within a thread's stack.
constexpr int kMaxExpressionDepth = 100;
constexpr int kMaxBlockDepth = 40;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Block run() {
    Block block = parse_block({});
    if (peek().kind != TokenKind::kEnd) fail("unexpected end tag");
    return block;
  }

 private:
  using Names = std::initializer_list<std::string_view>;

  // --- tokens

  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  const Token& take() {
    const Token& token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool is_operator(std::string_view text, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::kOperator && peek(ahead).text == text;
  }
  bool is_name(std::string_view text, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::kName && peek(ahead).text == text;
  }
  bool accept(std::string_view op) { return is_operator(op) && (take(), true); }
  bool accept_name(std::string_view name) { return is_name(name) && (take(), true); }

  [[noreturn]] void fail(const std::string& message) const { throw SyntaxError{peek().line, message}; }

  std::string found() const {
    switch (peek().kind) {
      case TokenKind::kBlockEnd:
        return "%}";
      case TokenKind::kOutputEnd:
        return "}}";
      case TokenKind::kEnd:
        return "the end of the template";
      case TokenKind::kText:
        return "text";
      default:
        return fmt::format("'{}'", peek().text);
    }
  }
  void expect(std::string_view op) {
    if (!accept(op)) fail(fmt::format("expected '{}', found {}", op, found()));
  }
  void expect(TokenKind kind, std::string_view what) {
    if (peek().kind != kind) fail(fmt::format("expected {}, found {}", what, found()));
    take();
  }
  std::string expect_name() {
    if (peek().kind != TokenKind::kName) fail(fmt::format("expected a name, found {}", found()));
    return take().text;
  }

  // --- statements

  // Parses up to a tag named in `ends`, whose name is then the current token.
  Block parse_block(Names ends) {
    if (++block_depth_ > kMaxBlockDepth) fail(fmt::format("blocks nest deeper than {}", kMaxBlockDepth));
    Block block;
    while (peek().kind != TokenKind::kEnd) {
      const int line = peek().line;
      if (peek().kind == TokenKind::kText) {
        auto text = make_statement(StatementKind::kText, line);
        text->text = take().text;
        block.push_back(std::move(text));
      } else if (peek().kind == TokenKind::kOutputBegin) {
        take();
        auto output = make_statement(StatementKind::kOutput, line);
        output->value = parse_expression();
        expect(TokenKind::kOutputEnd, "}}");
        block.push_back(std::move(output));
      } else {
        expect(TokenKind::kBlockBegin, "a tag");
        if (std::find(ends.begin(), ends.end(), peek().text) != ends.end()) break;
        parse_statement(block);
      }
    }
    if (ends.size() > 0 && peek().kind == TokenKind::kEnd) {
      fail(fmt::format("expected {{% {} %}}, found the end of the template", *(ends.end() - 1)));
    }
    --block_depth_;
    return block;
  }

  static std::unique_ptr<Statement> make_statement(StatementKind kind, int line) {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = line;
    return statement;
  }

  void end_tag() { expect(TokenKind::kBlockEnd, "%}"); }

  void parse_statement(Block& block) {
    const int line = peek().line;
    const std::string tag = expect_name();
    if (tag == "if") return block.push_back(parse_if(line));
    if (tag == "for") return block.push_back(parse_for(line));
    if (tag == "set") return block.push_back(parse_set(line));
    if (tag == "macro") return block.push_back(parse_macro(line));
    if (tag == "break" || tag == "continue") {
      if (loop_depth_ == 0) fail(fmt::format("{{% {} %}} outside of a loop", tag));
      block.push_back(
          make_statement(tag == "break" ? StatementKind::kBreak : StatementKind::kContinue, line));
      return end_tag();
    }
    if (tag == "generation") {  // marks the assistant's text for training; here it only holds its body
      end_tag();
      for (auto& statement : parse_block({"endgeneration"})) block.push_back(std::move(statement));
      take();
      return end_tag();
    }
    throw SyntaxError{line, tag.starts_with("end") || tag == "else" || tag == "elif"
                                ? fmt::format("unexpected {{% {} %}}", tag)
                                : fmt::format("the tag {{% {} %}} is not supported", tag)};
  }

  std::unique_ptr<Statement> parse_if(int line) {
    auto statement = make_statement(StatementKind::kIf, line);
    while (true) {
      Statement::Branch branch;
      branch.condition = parse_expression();
      end_tag();
      branch.body = parse_block({"elif", "else", "endif"});
      statement->branches.push_back(std::move(branch));
      const std::string next = take().text;
      if (next == "elif") continue;
      if (next == "else") {
        end_tag();
        statement->branches.push_back({nullptr, parse_block({"endif"})});
        take();
      }
      end_tag();
      return statement;
    }
  }

  std::unique_ptr<Statement> parse_for(int line) {
    auto statement = make_statement(StatementKind::kFor, line);
    statement->targets = parse_targets();
    if (!accept_name("in")) fail(fmt::format("expected 'in', found {}", found()));
    statement->value = parse_or();
    if (accept_name("if")) statement->condition = parse_expression();
    if (is_name("recursive")) fail("a recursive for is not supported");
    end_tag();
    ++loop_depth_;
    statement->body = parse_block({"else", "endfor"});
    --loop_depth_;
    if (take().text == "else") {
      end_tag();
      statement->otherwise = parse_block({"endfor"});
      take();
    }
    end_tag();
    return statement;
  }

  std::vector<std::string> parse_targets() {
    std::vector<std::string> names;
    const bool bracketed = accept("(");
    do {
      names.push_back(expect_name());
    } while (accept(","));
    if (bracketed) expect(")");
    return names;
  }

  std::unique_ptr<Statement> parse_set(int line) {
    auto statement = make_statement(StatementKind::kSet, line);
    statement->targets = parse_targets();
    if (statement->targets.size() == 1 && accept(".")) statement->text = expect_name();
    if (accept("=")) {
      statement->value = parse_tuple();
      end_tag();
      return statement;
    }
    if (statement->targets.size() != 1 || !statement->text.empty() || is_operator("|")) {
      fail(fmt::format("expected '=', found {}", found()));
    }
    statement->kind = StatementKind::kSetBlock;
    end_tag();
    statement->body = parse_block({"endset"});
    take();
    end_tag();
    return statement;
  }

  std::unique_ptr<Statement> parse_macro(int line) {
    auto statement = make_statement(StatementKind::kMacro, line);
    statement->text = expect_name();
    expect("(");
    while (!accept(")")) {
      Statement::Parameter parameter{expect_name(), nullptr};
      if (accept("=")) parameter.fallback = parse_expression();
      statement->parameters.push_back(std::move(parameter));
      if (!is_operator(")")) expect(",");
    }
    end_tag();
    const int loops = std::exchange(loop_depth_, 0);
    statement->body = parse_block({"endmacro"});
    loop_depth_ = loops;
    take();
    end_tag();
    return statement;
  }

  // --- expressions, by rising precedence

  // Counts recursion of the parser itself, e.g. of brackets.
  struct Nesting {
    explicit Nesting(Parser& parser) : parser(parser) {
      if (++parser.nesting_ > 3 * kMaxExpressionDepth) {  // one bracket passes three of these
        parser.fail(fmt::format("an expression nests deeper than {}", kMaxExpressionDepth));
      }
    }
    ~Nesting() { --parser.nesting_; }
    Parser& parser;
  };

  std::unique_ptr<Expression> make(ExpressionKind kind, std::string name = {}) const {
    auto expression = std::make_unique<Expression>();
    expression->kind = kind;
    expression->line = peek().line;
    expression->name = std::move(name);
    return expression;
  }

  // Adds an operand (which may be null) and keeps the depth; chains like a + b + c grow to the left without
  // recursion.
  void add(Expression& to, ExpressionPtr operand) const {
    if (operand) deepen(to, *operand);
    to.operands.push_back(std::move(operand));
  }
  void deepen(Expression& to, const Expression& operand) const {
    to.depth = std::max(to.depth, operand.depth + 1);
    if (to.depth > kMaxExpressionDepth)
      fail(fmt::format("an expression nests deeper than {}", kMaxExpressionDepth));
  }

  ExpressionPtr binary(ExpressionKind kind, std::string name, ExpressionPtr left, ExpressionPtr right) const {
    auto expression = make(kind, std::move(name));
    add(*expression, std::move(left));
    add(*expression, std::move(right));
    return expression;
  }

  // An expression, or several with commas between: a list.
  ExpressionPtr parse_tuple() {
    ExpressionPtr first = parse_expression();
    if (!is_operator(",")) return first;
    auto list = make(ExpressionKind::kList);
    add(*list, std::move(first));
    while (accept(",")) add(*list, parse_expression());
    return list;
  }

  ExpressionPtr parse_expression() {
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

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    while (accept_name("or")) left = binary(ExpressionKind::kOr, {}, std::move(left), parse_and());
    return left;
  }

  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    while (accept_name("and")) left = binary(ExpressionKind::kAnd, {}, std::move(left), parse_not());
    return left;
  }

  ExpressionPtr parse_not() {
    const Nesting nesting(*this);
    if (!accept_name("not")) return parse_comparison();
    auto expression = make(ExpressionKind::kNot);
    add(*expression, parse_not());
    return expression;
  }

  std::string accept_comparison() {
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

  ExpressionPtr parse_comparison() {
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
  ExpressionPtr parse_arithmetic(Names operators, Next next) {
    ExpressionPtr left = (this->*next)();
    while (true) {
      const auto op =
          std::find_if(operators.begin(), operators.end(), [&](auto text) { return is_operator(text); });
      if (op == operators.end()) return left;
      take();
      left = binary(ExpressionKind::kArithmetic, std::string(*op), std::move(left), (this->*next)());
    }
  }
  ExpressionPtr parse_sum() { return parse_arithmetic({"+", "-"}, &Parser::parse_concatenation); }
  ExpressionPtr parse_concatenation() { return parse_arithmetic({"~"}, &Parser::parse_product); }
  ExpressionPtr parse_product() { return parse_arithmetic({"*", "//", "/", "%"}, &Parser::parse_filtered); }

  ExpressionPtr parse_filtered() {
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

  ExpressionPtr parse_unary() {
    const Nesting nesting(*this);
    if (accept("-")) {
      auto negation = make(ExpressionKind::kNegate);
      add(*negation, parse_unary());
      return negation;
    }
    if (accept("+")) return parse_unary();
    return parse_postfix(parse_primary());
  }

  ExpressionPtr parse_filter(ExpressionPtr value) {
    auto filter = make(ExpressionKind::kFilter, expect_name());
    if (!has_filter(filter->name)) fail(fmt::format("the filter '{}' is not supported", filter->name));
    add(*filter, std::move(value));
    if (accept("(")) parse_arguments(*filter);
    return filter;
  }

  ExpressionPtr parse_test(ExpressionPtr value) {
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

  bool begins_operand() const {
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

  // Behind "(".
  void parse_arguments(Expression& call) {
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

  ExpressionPtr parse_postfix(ExpressionPtr value) {
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

  // Behind "[".
  ExpressionPtr parse_subscript(ExpressionPtr value) {
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

  ExpressionPtr literal(Value value) const {
    auto expression = make(ExpressionKind::kLiteral);
    expression->literal = std::move(value);
    return expression;
  }

  ExpressionPtr parse_primary() {
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

  ExpressionPtr parse_string() {
    std::string text;
    while (peek().kind == TokenKind::kString) text += take().text;  // neighbours join, as in Python
    return literal(Value(std::move(text)));
  }

  ExpressionPtr parse_number() {
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

  ExpressionPtr parse_name() {
    const std::string& name = take().text;
    if (name == "true" || name == "True") return literal(Value(true));
    if (name == "false" || name == "False") return literal(Value(false));
    if (name == "none" || name == "None") return literal(Value());
    return make(ExpressionKind::kName, name);
  }

  // Behind "(": a bracketed expression or a tuple, which is a list here.
  ExpressionPtr parse_bracketed() {
    auto list = make(ExpressionKind::kList);
    if (accept(")")) return list;
    ExpressionPtr first = parse_expression();
    if (accept(")")) return first;
    add(*list, std::move(first));
    expect(",");
    parse_items(*list, ")");
    return list;
  }

  void parse_items(Expression& list, std::string_view closer) {
    while (!accept(closer)) {
      add(list, parse_expression());
      if (!is_operator(closer)) expect(",");
    }
  }

  ExpressionPtr parse_dict() {
    auto dict = make(ExpressionKind::kDict);
    while (!accept("}")) {
      add(*dict, parse_expression());
      expect(":");
      add(*dict, parse_expression());
      if (!is_operator("}")) expect(",");
    }
    return dict;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int block_depth_ = 0;
  int loop_depth_ = 0;
};

}  // namespace

Block parse(std::string_view source) {
  return Parser(tokenize(source)).run();
}

}  // namespace lowkey::coordinator::jinja
