// How much of a prompt's beginning each replica has on its device, or is about to compute, and how much more
// of it lies in stores.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "coordinator/membership/replica.h"

namespace lowkey::coordinator {

class PagesUnderWay;
class RouterIndex;

// In pages, from the front of the prompt without a gap.
struct PrefixRun {
  uint32_t device = 0;     // there, or being computed by then
  uint32_t under_way = 0;  // of those, being computed
  uint32_t store = 0;      // behind those on the device: in one of the stores

  bool operator==(const PrefixRun&) const = default;
};

struct PrefixScan {
  std::vector<PrefixRun> runs;        // of each replica asked for, in their order
  std::map<int, uint32_t> in_stores;  // world rank -> pages that it has of the runs' store parts
};

// `replicas`: of one cache key, which has page_tokens. The last token of a prompt is always computed, so that
// a page that it would complete does not count. Stops at the first page that nobody can go on with; one hash
// and two look-ups per page and replica, or one per store, that still has the prefix.
PrefixScan scan_prefix(const RouterIndex& index, const PagesUnderWay& under_way, const CacheKey& key,
                       std::span<const int> replicas, std::string_view salt, std::span<const int32_t> tokens);

// All pages of a prompt that could be found.
std::vector<Hash128> pages_to_find(const CacheKey& key, std::string_view salt,
                                   std::span<const int32_t> tokens);

}  // namespace lowkey::coordinator
