// Few query rows against bf16 pages without a tile in between: what decode_tile() and multiply_tile() do, in
// registers, with the same bits. For decode, where writing and reading a tile costs more than the page.
#pragma once

#include <cstddef>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels::simd {

// More rows than this are served better by a tile.
inline constexpr int kMaxFullRows = 8;

// One stored vector of one page, and of the page to prefetch; the same slabs: none.
struct FullPage {
  const PageLayout* layout;
  const VectorLayout* vector;
  std::byte* const* slabs;
  std::byte* const* next;
};

// Whether all features of the vector are read, as bf16, in whole groups.
bool is_full_bf16(const PageLayout& layout, const VectorLayout& vector, int levels);

// scores[rows][page_tokens] = queries[rows][dim] times keys. REQUIRES: is_full_bf16, a key.
void score_full_rows(const FullPage& page, const float* queries, int stride, int rows, float* scores,
                     int score_stride);

// acc[rows][dim] += weights[rows][page_tokens] times values. REQUIRES: is_full_bf16, a value.
void add_full_rows(const FullPage& page, const float* weights, int stride, int rows, float* acc,
                   int acc_stride);

}  // namespace lowkey::kernels::simd
