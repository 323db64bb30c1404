#include "coordinator/text/jinja_lexer.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "coordinator/text/utf8.h"

namespace lowkey::coordinator::jinja {
namespace {

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool is_name(char c) {
  return is_name_start(c) || is_digit(c);
}

// One newline at the very end of a template is not part of it; line ends become "\n".
std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {}

  std::vector<Token> run() {
    while (pos_ < source_.size()) {
      const size_t tag = find_tag();
      if (tag == std::string::npos) {
        add_text(source_.size(), '\0', '\0');
        break;
      }
      const char kind = source_[tag + 1];
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      add_text(tag, kind, sign);
      pos_ = tag + 2 + (sign == '-' || sign == '+' ? 1 : 0);
      if (kind == '#') {
        skip_comment();
      } else {
        lex_tag(kind);
      }
    }
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  size_t find_tag() const {
    for (size_t i = source_.find('{', pos_); i != std::string::npos; i = source_.find('{', i + 1)) {
      const char next = i + 1 < source_.size() ? source_[i + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return i;
    }
    return std::string::npos;
  }

  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  void advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(pos_),
                                         source_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    pos_ = to;
  }

  // The text before a tag, without what the tag's sign or lstrip_blocks takes away.
  void add_text(size_t end, char tag_kind, char sign) {
    std::string_view text = std::string_view(source_).substr(pos_, end - pos_);
    if (sign == '-') {
      text = trim_whitespace(text, false, true);
    } else if (sign != '+' && (tag_kind == '%' || tag_kind == '#')) {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      const bool at_line_start = newline != std::string_view::npos || line_starting_;
      const auto indent = text.substr(line_begin);
      if (at_line_start && trim_whitespace(indent).empty()) text = text.substr(0, line_begin);
    }
    if (!text.empty()) add(TokenKind::kText, std::string(text));
    advance(end);
  }

  // Behind a tag: '-' takes all whitespace; a block or comment takes one newline (trim_blocks) unless '+'.
  void finish_tag(char sign, bool trims_newline) {
    size_t end = pos_;
    if (sign == '-') {
      end = source_.size() - trim_whitespace(std::string_view(source_).substr(end), true, false).size();
    } else if (trims_newline && sign != '+' && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    line_starting_ = end > pos_ && source_[end - 1] == '\n';
    advance(end);
  }

  void skip_comment() {
    const size_t end = source_.find("#}", pos_);
    if (end == std::string::npos) throw SyntaxError{line_, "a comment {# is never closed"};
    const char sign =
        end > pos_ && (source_[end - 1] == '-' || source_[end - 1] == '+') ? source_[end - 1] : '\0';
    advance(end + 2);
    finish_tag(sign, true);
  }

  bool at_end_of_tag(std::string_view closer, char& sign) {
    sign = source_[pos_];
    const bool signs = sign == '-' || (sign == '+' && closer[0] == '%');
    if (!signs) sign = '\0';
    const size_t at = pos_ + (signs ? 1 : 0);
    if (source_.compare(at, 2, closer) != 0) return false;
    pos_ = at + 2;
    return true;
  }

  void lex_tag(char kind) {
    const bool is_block = kind == '%';
    const std::string_view closer = is_block ? "%}" : "}}";
    const int begin_line = line_;
    add(is_block ? TokenKind::kBlockBegin : TokenKind::kOutputBegin, "");
    int depth = 0;  // a closer inside brackets is none: {{ {'a': {}} }}
    while (true) {
      while (pos_ < source_.size() && is_space(source_[pos_])) advance(pos_ + 1);
      if (pos_ >= source_.size()) {
        throw SyntaxError{begin_line, fmt::format("a tag {{{} is never closed", kind)};
      }
      char sign = '\0';
      if (depth == 0 && at_end_of_tag(closer, sign)) {
        add(is_block ? TokenKind::kBlockEnd : TokenKind::kOutputEnd, "");
        finish_tag(sign, is_block);
        return;
      }
      lex_token(depth);
    }
  }

  void lex_token(int& depth) {
    const char c = source_[pos_];
    if (is_name_start(c)) {
      size_t end = pos_;
      while (end < source_.size() && is_name(source_[end])) ++end;
      add(TokenKind::kName, source_.substr(pos_, end - pos_));
      pos_ = end;
    } else if (is_digit(c)) {
      lex_number();
    } else if (c == '\'' || c == '"') {
      lex_string(c);
    } else {
      lex_operator(depth);
    }
  }

  void lex_number() {
    size_t end = pos_;
    const auto digits = [&] {
      while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) ++end;
    };
    const auto digit_at = [&](size_t i) { return i < source_.size() && is_digit(source_[i]); };
    digits();
    bool is_float = false;
    const bool after_dot = tokens_.back().kind == TokenKind::kOperator && tokens_.back().text == ".";
    if (!after_dot && end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      is_float = true;
      ++end;
      digits();
    }
    if (!after_dot && end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const bool sign = end + 1 < source_.size() && (source_[end + 1] == '-' || source_[end + 1] == '+');
      if (digit_at(end + 1 + (sign ? 1 : 0))) {
        is_float = true;
        end += 1 + (sign ? 1 : 0);
        digits();
      }
    }
    std::string text = source_.substr(pos_, end - pos_);
    std::erase(text, '_');
    add(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(text));
    pos_ = end;
  }

  void lex_string(char quote) {
    const int begin_line = line_;
    std::string text;
    size_t i = pos_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] == '\\' && i + 1 < source_.size()) {
        i = unescape(i + 1, text);
      } else {
        text += source_[i];
      }
    }
    if (i >= source_.size()) throw SyntaxError{begin_line, "a string is never closed"};
    add(TokenKind::kString, std::move(text));
    advance(i + 1);
  }

  // `at`: the character behind the backslash. Returns the last position that belongs to the escape.
  size_t unescape(size_t at, std::string& out) const {
    constexpr std::string_view kFrom = "ntrabfv\\'\"", kTo = "\n\t\r\a\b\f\v\\'\"";
    const char c = source_[at];
    if (const size_t index = kFrom.find(c); index != std::string_view::npos) {
      out += kTo[index];
      return at;
    }
    if (c == '\n') return at;  // a continued line
    if (c >= '0' && c <= '7') {
      char32_t code = 0;
      size_t i = at;
      for (; i < at + 3 && i < source_.size() && source_[i] >= '0' && source_[i] <= '7'; ++i) {
        code = code * 8 + static_cast<char32_t>(source_[i] - '0');
      }
      append_utf8(out, code);
      return i - 1;
    }
    const size_t length = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (length == 0) {  // Python leaves unknown escapes as they are
      (out += '\\') += c;
      return at;
    }
    char32_t code = 0;
    for (size_t i = at + 1; i <= at + length; ++i) {
      if (i >= source_.size() || !std::isxdigit(static_cast<unsigned char>(source_[i]))) {
        throw SyntaxError{line_, fmt::format("\\{} needs {} hexadecimal digits", c, length)};
      }
      const char digit = source_[i];
      code = code * 16 + static_cast<char32_t>(is_digit(digit) ? digit - '0' : (digit | 32) - 'a' + 10);
    }
    append_utf8(out, code);
    return at + length;
  }

  void lex_operator(int& depth) {
    static constexpr std::array<std::string_view, 26> kOperators = {
        "==", "!=", ">=", "<=", "//", "**", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (const std::string_view op : kOperators) {
      if (source_.compare(pos_, op.size(), op) != 0) continue;
      if (op == "[" || op == "(" || op == "{") ++depth;
      if (op == "]" || op == ")" || op == "}") --depth;
      if (depth < 0) throw SyntaxError{line_, fmt::format("'{}' closes nothing", op)};
      add(TokenKind::kOperator, std::string(op));
      pos_ += op.size();
      return;
    }
    throw SyntaxError{line_, fmt::format("unexpected character '{}'",
                                         source_.substr(pos_, next_utf8(source_, pos_).bytes))};
  }

  std::string source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace lowkey::coordinator::jinja
