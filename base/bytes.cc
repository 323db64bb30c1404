#include "base/bytes.h"

#include <array>
#include <charconv>
#include <cmath>

namespace lowkey {
namespace {

struct Unit {
  std::string_view name;
  double factor;
};

constexpr std::array<Unit, 10> kUnits{{{"", 1},
                                       {"B", 1},
                                       {"KB", 1e3},
                                       {"MB", 1e6},
                                       {"GB", 1e9},
                                       {"TB", 1e12},
                                       {"KiB", 1024.0},
                                       {"MiB", 1024.0 * 1024},
                                       {"GiB", 1024.0 * 1024 * 1024},
                                       {"TiB", 1024.0 * 1024 * 1024 * 1024}}};

}  // namespace

Result<uint64_t> parse_bytes(std::string_view text) {
  const Error bad{Code::kUsage, fmt::format("expected a size such as 512MiB or 2GiB, found '{}'", text), {}};
  double number = 0;
  const auto [end, failure] =
      std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (failure != std::errc() || !(number >= 0)) return bad;  // from_chars reads "nan"
  std::string_view unit(end, text.data() + text.size() - end);
  if (unit.starts_with(' ')) unit.remove_prefix(1);
  for (const Unit& known : kUnits) {
    if (unit != known.name) continue;
    const double bytes = number * known.factor;
    if (bytes >= 9e18) return bad;
    return static_cast<uint64_t>(std::llround(bytes));
  }
  return bad;
}

std::string format_bytes(uint64_t bytes) {
  static constexpr std::array<std::string_view, 5> kNames{"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kNames.size()) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, unit == 0 || value == std::floor(value) ? 0 : 1, kNames[unit]);
}

}  // namespace lowkey
