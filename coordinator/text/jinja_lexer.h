// Cuts a template into text and tokens, with Jinja's whitespace control.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lowkey::coordinator::jinja {

enum class TokenKind {
  kText,
  kBlockBegin,
  kBlockEnd,
  kOutputBegin,
  kOutputEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  std::string text;  // unescaped for strings
  int line;          // from 1
};

// A problem in the template's source.
struct SyntaxError {
  int line;
  std::string message;
};

// As Jinja with trim_blocks and lstrip_blocks on and keep_trailing_newline off, which is how transformers
// renders chat templates: a block or comment alone on its line leaves nothing behind. Throws SyntaxError.
std::vector<Token> tokenize(std::string_view source);

}  // namespace lowkey::coordinator::jinja
