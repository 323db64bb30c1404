// UTF-8 and the few Unicode properties that tokenizers and templates ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lowkey::coordinator {

enum class Utf8State : uint8_t {
  kValid,
  kInvalid,     // `bytes` is the maximal ill-formed subpart (Unicode 15, section 3.9): one U+FFFD replaces it
  kIncomplete,  // the text ends inside a character that further bytes could complete
};

struct Utf8Step {
  Utf8State state = Utf8State::kInvalid;
  uint8_t bytes = 1;  // 1..4
  char32_t code = 0xFFFD;
};

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// REQUIRES: pos < text.size()
Utf8Step next_utf8(std::string_view text, size_t pos);
void append_utf8(std::string& out, char32_t code);
bool is_valid_utf8(std::string_view text);
std::string replace_invalid_utf8(std::string_view text);
size_t count_characters(std::string_view text);

bool is_whitespace(char32_t code);   // White_Space
bool is_numeric(char32_t code);      // categories Nd, Nl, No
bool is_punctuation(char32_t code);  // ASCII punctuation or categories P*
bool is_word(char32_t code);         // letters, marks, digits, connectors, joiners

// `strip_left` and `strip_right` of whitespace, by character.
std::string_view trim_whitespace(std::string_view text, bool left = true, bool right = true);

std::string to_lower(std::string_view text);
std::string to_upper(std::string_view text);

enum class UnicodeForm : uint8_t { kNfc, kNfd, kNfkc, kNfkd };
// Ill-formed text is returned unchanged.
std::string normalize_unicode(std::string_view text, UnicodeForm form);

}  // namespace lowkey::coordinator
