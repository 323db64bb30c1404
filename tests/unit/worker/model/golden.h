// Reading the committed reference outputs of tests/golden/model and, where present, of ../shared.
#pragma once

#include <boost/json/parse.hpp>
#include <boost/json/value_to.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace lowkey::testing {

inline std::filesystem::path golden_dir() {
  return std::filesystem::path(LOWKEY_SOURCE_DIR) / "tests" / "golden" / "model";
}
inline std::filesystem::path demo_model() {
  return std::filesystem::path(LOWKEY_SOURCE_DIR) / "deploy" / "demo-model";
}

// Third-party data beside the checkout; tests skip by name where it is absent.
inline std::filesystem::path shared_data() {
  return std::filesystem::path(LOWKEY_SOURCE_DIR).parent_path() / "shared" / "data";
}

inline boost::json::value read_json(const std::filesystem::path& path) {
  std::ifstream in(path);
  return boost::json::parse(std::string(std::istreambuf_iterator<char>(in), {}));
}

inline std::vector<int32_t> ids(const boost::json::value& list) {
  return boost::json::value_to<std::vector<int32_t>>(list);
}

// Largest over the rows of max |a - b| / max |b|: relative to the row's largest logit.
inline double relative_error(const std::vector<std::vector<float>>& a,
                             const std::vector<std::vector<float>>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (size_t row = 0; row < std::min(a.size(), b.size()); ++row) {
    double difference = a[row].size() == b[row].size() ? 0 : INFINITY;
    double largest = 0;
    for (size_t i = 0; i < std::min(a[row].size(), b[row].size()); ++i) {
      difference = std::max(difference, std::abs(double{a[row][i]} - b[row][i]));
      largest = std::max(largest, std::abs(double{b[row][i]}));
      if (!std::isfinite(a[row][i])) difference = INFINITY;
    }
    worst = std::max(worst, difference / largest);
  }
  return worst;
}

}  // namespace lowkey::testing
