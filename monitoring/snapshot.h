// The values of one process's metrics at one moment, and their bytes on the wire. Names and help do not
// travel: both sides have the same catalog, and a fingerprint of it refuses the rest.
//
//   "LKM1" · u64 catalog fingerprint · u8 n, n × (string name, string value)   constant labels
//   u16 families, ascending: u16 metric · u32 series: one string per label of the catalog, then
//     counter, gauge: f64 · histogram: f64 sum, one u64 per bucket and for +Inf (cumulative)
//   string: u16 length, UTF-8 bytes. All numbers little-endian.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "monitoring/metrics.h"

namespace lowkey::monitoring {

struct Series {
  std::vector<std::string> label_values;  // in the catalog's order
  double value = 0;                       // of a histogram: the sum
  std::vector<uint64_t> buckets;          // cumulative, the last one is +Inf
};

struct Family {
  Metric metric{};
  std::vector<Series> series;
};

struct Snapshot {
  Labels constant_labels;
  std::vector<Family> families;  // ascending by metric
};

std::string encode(const Snapshot& snapshot);
Result<Snapshot> decode(std::string_view bytes);  // safe on any bytes

// The same text with bytes that are not UTF-8 replaced by '?', at most 256 bytes long.
std::string label_text(std::string_view text);
bool is_label_text(std::string_view text);

}  // namespace lowkey::monitoring
