// Quoted input in an error message must not break its one line.
#pragma once

#include <string>

namespace lowkey {

// `text` with every control character as '?'.
inline std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return text;
}

}  // namespace lowkey
