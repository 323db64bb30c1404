// Reads the golden files of the text layer.
#pragma once

#include <boost/json/value.hpp>
#include <filesystem>
#include <string>
#include <vector>

namespace lowkey::coordinator {

inline const std::filesystem::path kGoldenDir =
    std::filesystem::path(LOWKEY_SOURCE_DIR) / "tests/golden/text";

boost::json::value read_golden(const std::filesystem::path& path);
std::string read_file(const std::filesystem::path& path);
std::vector<std::string> golden_strings();

inline std::string as_string(const boost::json::value& value) {
  return {value.as_string().data(), value.as_string().size()};
}
std::vector<int32_t> as_ids(const boost::json::value& value);

}  // namespace lowkey::coordinator
