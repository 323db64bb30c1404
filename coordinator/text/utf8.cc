#include "coordinator/text/utf8.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <vector>

namespace lowkey::coordinator {
namespace {

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

template <class Map>
std::string map_characters(std::string_view text, Map&& map) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = next_utf8(text, pos);
    if (step.state == Utf8State::kValid) {
      map(out, step.code);
    } else {
      out.append(text.substr(pos, step.bytes));
    }
    pos += step.bytes;
  }
  return out;
}

// Nothing: the text is ill-formed.
std::optional<std::vector<utf8proc_int32_t>> decompose(std::string_view text, utf8proc_option_t options) {
  std::array<utf8proc_int32_t, 32> parts;  // of one character; U+FDFA, the longest, has 18
  std::vector<utf8proc_int32_t> out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = next_utf8(text, pos);
    if (step.state != Utf8State::kValid) return std::nullopt;
    int boundary_class = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(step.code), parts.data(),
                                               std::ssize(parts), options, &boundary_class);
    if (count < 0 || count > std::ssize(parts)) return std::nullopt;
    out.insert(out.end(), parts.begin(), parts.begin() + count);
    pos += step.bytes;
  }
  return out;
}

// The canonical order. utf8proc's own takes quadratic time, and a text may be nothing but marks.
void sort_marks(std::vector<utf8proc_int32_t>& codes) {
  const auto class_of = [](utf8proc_int32_t code) { return utf8proc_get_property(code)->combining_class; };
  for (auto at = codes.begin(); at != codes.end();) {
    const auto begin = std::find_if(at, codes.end(), [&](auto code) { return class_of(code) != 0; });
    at = std::find_if(begin, codes.end(), [&](auto code) { return class_of(code) == 0; });
    std::stable_sort(begin, at, [&](auto a, auto b) { return class_of(a) < class_of(b); });
  }
}

}  // namespace

Utf8Step next_utf8(std::string_view text, size_t pos) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[pos + i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8State::kValid, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {};
  const uint8_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and values past U+10FFFF.
  uint8_t low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  char32_t code = lead & (0x7F >> length);
  for (uint8_t i = 1; i < length; ++i) {
    if (pos + i >= text.size()) return {Utf8State::kIncomplete, i, 0xFFFD};
    const uint8_t next = byte(i);
    if (next < low || next > high) return {Utf8State::kInvalid, i, 0xFFFD};
    code = code << 6 | (next & 0x3F);
    low = 0x80, high = 0xBF;
  }
  return {Utf8State::kValid, length, code};
}

void append_utf8(std::string& out, char32_t code) {
  if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) code = 0xFFFD;
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | code >> 6);
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | code >> 12);
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | code >> 18);
    out += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

bool is_valid_utf8(std::string_view text) {
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = next_utf8(text, pos);
    if (step.state != Utf8State::kValid) return false;
    pos += step.bytes;
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = next_utf8(text, pos);
    out.append(step.state == Utf8State::kValid ? text.substr(pos, step.bytes) : kReplacementCharacter);
    pos += step.bytes;
  }
  return out;
}

size_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

bool is_whitespace(char32_t code) {
  if (code < 0x80) return code == ' ' || (code >= '\t' && code <= '\r');
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
         code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_numeric(char32_t code) {
  if (code < 0x80) return code >= '0' && code <= '9';
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t code) {
  if (code < 0x80) return code > ' ' && code < 0x7F && !std::isalnum(static_cast<int>(code));
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool is_word(char32_t code) {
  if (code == 0x200C || code == 0x200D) return true;
  if (code >= 0x24B6 && code <= 0x24E9) return true;  // circled letters: symbols that are Alphabetic
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) ||
         category == UTF8PROC_CATEGORY_PC;
}

std::string_view trim_whitespace(std::string_view text, bool left, bool right) {
  while (left && !text.empty()) {
    const Utf8Step step = next_utf8(text, 0);
    if (!is_whitespace(step.code)) break;
    text.remove_prefix(step.bytes);
  }
  while (right && !text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (text[start] & 0xC0) == 0x80) --start;
    if (!is_whitespace(next_utf8(text, start).code)) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

std::string to_lower(std::string_view text) {
  return map_characters(text, [](std::string& out, char32_t code) {
    if (code == 0x130) {  // the one character whose lower case is two characters
      out += "i\xCC\x87";
    } else {
      append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))));
    }
  });
}

std::string to_upper(std::string_view text) {
  return map_characters(text, [](std::string& out, char32_t code) {
    if (code == 0xDF) {
      out += "SS";
    } else {
      append_utf8(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code))));
    }
  });
}

std::string normalize_unicode(std::string_view text, UnicodeForm form) {
  if (is_ascii(text)) return std::string(text);
  int options = UTF8PROC_STABLE;
  const bool compose = form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc;
  options |= compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd) options |= UTF8PROC_COMPAT;
  auto codes = decompose(text, static_cast<utf8proc_option_t>(options));
  if (!codes) return std::string(text);
  sort_marks(*codes);
  const auto length =
      utf8proc_normalize_utf32(codes->data(), std::ssize(*codes), static_cast<utf8proc_option_t>(options));
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < length; ++i) append_utf8(out, static_cast<char32_t>((*codes)[i]));
  return out;
}

}  // namespace lowkey::coordinator
