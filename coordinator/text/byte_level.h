// The byte alphabet of byte-level BPE (GPT-2): every byte is written as one printable character.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace lowkey::coordinator {

std::string bytes_to_alphabet(std::string_view bytes);
// Empty when some character is outside the alphabet: such a token stands for its own UTF-8 bytes.
std::optional<std::string> alphabet_to_bytes(std::string_view text);

}  // namespace lowkey::coordinator
