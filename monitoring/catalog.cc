#include "monitoring/catalog.h"

#include <array>

namespace lowkey::monitoring {
namespace {

using enum MetricType;
using enum Feeder;

// Upper bounds; +Inf is implied. Small models answer within a millisecond, large prompts take a minute.
constexpr std::array<double, 0> kNone{};
constexpr std::array kTtft{0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
                           0.5,   1.0,   2.0,   5.0,  10.0, 30.0, 60.0};
constexpr std::array kItl{0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0};
constexpr std::array kLatency{0.005, 0.01, 0.02, 0.05, 0.1, 0.2,  0.5,  1.0,
                              2.0,   5.0,  10.,  20.,  60., 120., 300., 600.};
constexpr std::array kTokens{1.,   2.,    4.,    8.,    16.,   32.,    64.,    128.,   256.,
                             512., 1024., 2048., 4096., 8192., 16384., 32768., 131072.};

constexpr MetricSpec kCatalog[] = {
#define LOWKEY_METRIC_SPEC(id, name, type, feeder, labels, buckets, help) \
  {name, type, feeder, labels, std::span<const double>(buckets), help},
    LOWKEY_METRICS(LOWKEY_METRIC_SPEC)
#undef LOWKEY_METRIC_SPEC
};

}  // namespace

const MetricSpec& spec(Metric metric) {
  return kCatalog[static_cast<size_t>(metric)];
}
std::span<const MetricSpec> catalog() {
  return kCatalog;
}

std::vector<LabelSpec> label_specs(const MetricSpec& metric) {
  std::vector<LabelSpec> result;
  auto take = [](std::string_view& text, char separator) {
    auto end = text.find(separator);
    auto part = text.substr(0, end);
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
    return part;
  };
  for (auto rest = metric.labels; !rest.empty();) {
    auto word = take(rest, ' ');
    auto values = word;
    LabelSpec label{take(values, '='), {}};
    while (!values.empty()) label.values.push_back(take(values, '|'));
    result.push_back(std::move(label));
  }
  return result;
}

}  // namespace lowkey::monitoring
