// A place in the tokens of a template, and what parsers ask of it. Throws SyntaxError.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_lexer.h"

namespace lowkey::coordinator::jinja {

class TokenCursor {
 protected:
  explicit TokenCursor(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  // The current token, or one ahead of it; the last one is kEnd and stays.
  const Token& peek(size_t ahead = 0) const;
  const Token& take();
  bool is_operator(std::string_view text, size_t ahead = 0) const;
  bool is_name(std::string_view text, size_t ahead = 0) const;
  bool accept(std::string_view op) { return is_operator(op) && (take(), true); }
  bool accept_name(std::string_view name) { return is_name(name) && (take(), true); }
  void expect(std::string_view op);
  void expect(TokenKind kind, std::string_view what);
  std::string expect_name();
  [[noreturn]] void fail(const std::string& message) const;
  std::string found() const;  // the current token, for messages

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
};

}  // namespace lowkey::coordinator::jinja
