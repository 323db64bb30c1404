// Percent-encoding of paths and queries (RFC 3986, section 2.1).
#pragma once

#include <string>
#include <string_view>

namespace lowkey::coordinator {

// What is no escape stays as it is.
std::string percent_decoded(std::string_view text);

}  // namespace lowkey::coordinator
