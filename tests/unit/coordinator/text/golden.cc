#include "golden.h"

#include <boost/json/parse.hpp>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace lowkey::coordinator {

std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot open " + path.string());
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

boost::json::value read_golden(const std::filesystem::path& path) {
  return boost::json::parse(read_file(path));
}

std::vector<std::string> golden_strings() {
  std::vector<std::string> texts;
  const auto golden = read_golden(kGoldenDir / "strings.json");
  for (const auto& text : golden.as_array()) texts.push_back(as_string(text));
  return texts;
}

std::vector<int32_t> as_ids(const boost::json::value& value) {
  std::vector<int32_t> ids;
  for (const auto& id : value.as_array()) ids.push_back(static_cast<int32_t>(id.as_int64()));
  return ids;
}

}  // namespace lowkey::coordinator
