// Pages of known bytes for tests of the disk tier: what slab i of page n holds follows from n and i.
#pragma once

#include <array>
#include <random>
#include <vector>

#include "base/hash128.h"
#include "kernels/page/page_header.h"

namespace lowkey::kvstore {

struct KnownPage {
  std::array<std::vector<std::byte>, kernels::kMaxSlabs> slabs;  // levels, then the sink in the last place
  kernels::PageHeader header;
};

inline Hash128 known_identity(uint64_t n) {
  return {n * 0x9e3779b97f4a7c15ull, n};
}

inline std::vector<std::byte> known_slab(uint64_t n, int slab, size_t bytes) {
  std::minstd_rand random(static_cast<uint32_t>(n * 7 + slab + 1));
  std::vector<std::byte> result(bytes);
  for (std::byte& b : result) b = static_cast<std::byte>(random() >> 8);
  return result;
}

// `bytes` in the first level, half of it in each further one.
inline KnownPage known_page(uint64_t n, size_t bytes, int levels = 2, bool sink = false) {
  KnownPage page;
  for (int i = 0; i < levels; ++i) page.slabs[i] = known_slab(n, i, i == 0 ? bytes : bytes / 2);
  if (sink) page.slabs[3] = known_slab(n, 3, 100);
  page.header.identity = known_identity(n);
  page.header.levels_present = static_cast<uint8_t>((1 << levels) - 1);
  page.header.has_sink = sink;
  for (size_t i = 0; i < page.slabs.size(); ++i) {
    if (!page.slabs[i].empty()) page.header.checksums[i] = slab_checksum(page.slabs[i]);
  }
  page.header.header_checksum = page.header.compute_checksum();
  return page;
}

inline std::array<std::span<const std::byte>, kernels::kMaxSlabs> views(const KnownPage& page) {
  std::array<std::span<const std::byte>, kernels::kMaxSlabs> result;
  for (size_t i = 0; i < result.size(); ++i) result[i] = page.slabs[i];
  return result;
}

}  // namespace lowkey::kvstore
