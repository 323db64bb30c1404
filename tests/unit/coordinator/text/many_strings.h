// Ten thousand strings of many scripts; the twin of tests/golden/text/many_strings.py.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace lowkey::coordinator {

std::vector<std::string> many_strings();

// One for each ten strings in a row.
std::vector<uint32_t> checksums(const std::vector<std::string>& texts,
                                const std::function<std::vector<int32_t>(const std::string&)>& encode);

}  // namespace lowkey::coordinator
