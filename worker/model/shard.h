// How n things are split over tensor-parallel ranks.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lowkey::worker {

struct Shard {
  int64_t first = 0;
  int64_t count = 0;
};

// Equal parts; REQUIRES that size divides n (heads).
inline Shard even_shard(int64_t n, int rank, int size) {
  return {rank * (n / size), n / size};
}

// Parts that differ by at most one block; the last one ends at n. Blocks of 64 keep vector-friendly edges;
// below 64 features per rank the split goes by single features, so that no rank is left without.
inline Shard balanced_shard(int64_t n, int rank, int size) {
  const int64_t block = n >= 32 * int64_t{size} ? 32 : 1;
  const int64_t blocks = (n + block - 1) / block;
  const auto edge = [&](int r) { return std::min(n, blocks * r / size * block); };
  return {edge(rank), edge(rank + 1) - edge(rank)};
}

// ceil(n / size) each; the last ranks may hold fewer, or none (the vocabulary).
inline Shard padded_shard(int64_t n, int rank, int size) {
  const int64_t part = (n + size - 1) / size;
  const int64_t first = std::min(n, rank * part);
  return {first, std::min(n, first + part) - first};
}

}  // namespace lowkey::worker
