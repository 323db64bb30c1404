#include "coordinator/text/jinja_parser.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "coordinator/text/jinja_expressions.h"

namespace lowkey::coordinator::jinja {
namespace {

// Far beyond real templates; it keeps recursion over blocks within a thread's stack.
constexpr int kMaxBlockDepth = 40;

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::vector<Token> tokens) : ExpressionParser(std::move(tokens)) {}

  Block run() {
    Block block = parse_block({});
    if (peek().kind != TokenKind::kEnd) fail("unexpected end tag");
    return block;
  }

 private:
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

  int block_depth_ = 0;
  int loop_depth_ = 0;
};

}  // namespace

Block parse(std::string_view source) {
  return Parser(tokenize(source)).run();
}

}  // namespace lowkey::coordinator::jinja
