#include "coordinator/text/jinja_cursor.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

namespace lowkey::coordinator::jinja {

const Token& TokenCursor::peek(size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}
const Token& TokenCursor::take() {
  const Token& token = peek();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}
bool TokenCursor::is_operator(std::string_view text, size_t ahead) const {
  return peek(ahead).kind == TokenKind::kOperator && peek(ahead).text == text;
}
bool TokenCursor::is_name(std::string_view text, size_t ahead) const {
  return peek(ahead).kind == TokenKind::kName && peek(ahead).text == text;
}

void TokenCursor::fail(const std::string& message) const {
  throw SyntaxError{peek().line, message};
}

std::string TokenCursor::found() const {
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
void TokenCursor::expect(std::string_view op) {
  if (!accept(op)) fail(fmt::format("expected '{}', found {}", op, found()));
}
void TokenCursor::expect(TokenKind kind, std::string_view what) {
  if (peek().kind != kind) fail(fmt::format("expected {}, found {}", what, found()));
  take();
}
std::string TokenCursor::expect_name() {
  if (peek().kind != TokenKind::kName) fail(fmt::format("expected a name, found {}", found()));
  return take().text;
}

}  // namespace lowkey::coordinator::jinja
