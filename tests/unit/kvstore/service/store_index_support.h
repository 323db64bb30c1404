// Pages and pools that tests of the store's index share.
#pragma once

#include "kvstore/service/store_index.h"

namespace lowkey::kvstore {

using Grant = StoreIndex::Grant;

inline const TimePoint kStart{};

inline Hash128 identity(uint64_t n) {
  return {n * 0x9e3779b97f4a7c15ull, n};
}

inline constexpr SlabMask kAll = 0;

// `mark` tells apart what two writers made of the same page: checksum of slab i is mark + i.
inline kernels::PageHeader header_of(uint64_t n, int levels = 1, bool sink = false, uint64_t mark = 0) {
  kernels::PageHeader header;
  header.identity = identity(n);
  header.levels_present = static_cast<uint8_t>((1 << levels) - 1);
  header.has_sink = sink;
  for (size_t i = 0; i < header.checksums.size(); ++i) header.checksums[i] = mark + i;
  return header;
}

inline StoreIndex::Options small_pool(uint64_t capacity) {
  return {.capacity = capacity,
          .reservation_ttl = std::chrono::seconds(10),
          .lease_ttl = std::chrono::seconds(5)};
}

}  // namespace lowkey::kvstore
