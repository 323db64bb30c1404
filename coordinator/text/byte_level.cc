#include "coordinator/text/byte_level.h"

#include <array>
#include <cstdint>

#include "coordinator/text/utf8.h"

namespace lowkey::coordinator {
namespace {

// Printable Latin-1 bytes stand for themselves; the other 68 take the characters from U+0100 up, in order.
constexpr bool stands_for_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr char32_t kAlphabetEnd = 0x100 + 68;

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int16_t, kAlphabetEnd> byte{};
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.byte.fill(-1);
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t code = stands_for_itself(byte) ? static_cast<char32_t>(byte) : next++;
    alphabet.character[byte] = code;
    alphabet.byte[code] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string bytes_to_alphabet(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char c : bytes) append_utf8(out, kAlphabet.character[static_cast<uint8_t>(c)]);
  return out;
}

std::optional<std::string> alphabet_to_bytes(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = next_utf8(text, pos);
    if (step.code >= kAlphabetEnd || kAlphabet.byte[step.code] < 0) return std::nullopt;
    out += static_cast<char>(kAlphabet.byte[step.code]);
    pos += step.bytes;
  }
  return out;
}

}  // namespace lowkey::coordinator
