// What a recipe costs in time against exact pages, measured through the backend on caches of random content.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/ops/backend.h"
#include "kvstore/recipe/resolve.h"
#include "worker/offline/plain_pages.h"

namespace lowkey::worker {

// The cache of one sequence whose `tokens` tokens are its prompt, in the recipe's form: pages of random rows,
// encoded once and copied, so that every page is memory of its own. Move-only; backend and cache outlive it.
class CacheProbe {
 public:
  // `tokens` is rounded down to complete pages; half a page of exact rows comes on top. `read_levels`: of
  // every page; 0: all.
  CacheProbe(kernels::Backend& backend, const kvstore::ResolvedCache& cache, int num_q_heads, int tokens,
             int read_levels = 0);

  // Seconds of one token's attention in all layers.
  double attend();

 private:
  void fill(PlainPages& pages, int count, uint32_t seed);
  kernels::Tensor tensor(int cols) { return {.data = next_row(cols), .rows = 1, .cols = cols}; }
  float* next_row(int cols);

  kernels::Backend& backend_;
  const kvstore::ResolvedCache& cache_;
  const int num_q_heads_;
  int slots_ = 0;
  PlainPages own_;
  std::vector<PlainPages> archive_;  // [bank]
  std::vector<kernels::ArchivedPages> archived_;
  PlainMemory tail_;
  std::unique_ptr<kernels::Buffer> rows_;  // q, k, v, out
  size_t used_ = 0;
  kernels::Tensor q_, k_, v_, out_;
};

// Least time of `recipe` / least of `exact`, taken in turns for about `seconds` (what others do on the
// machine only ever adds), but 15 times at least.
double attention_ratio(kernels::Backend& backend, const kvstore::ResolvedCache& recipe, int read_levels,
                       const kvstore::ResolvedCache& exact, int num_q_heads, int tokens, double seconds);

// Seconds of one core to encode `tokens` tokens (rounded down to pages) of all banks with the CPU's encoder;
// least of `rounds`. REQUIRES: no archive (RecipeSequence::move_seconds() says what that takes).
double encode_seconds(const kernels::PageLayout& layout, int tokens, int rounds);

}  // namespace lowkey::worker
