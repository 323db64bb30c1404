// Pages to and from f32 tiles in Highway. A tile holds one stored vector of one page, ready for products
// without horizontal sums: keys as [feature][token], values as [token][feature]. Both strides are multiples
// of kTileLanes with what lies behind the last token (keys) or feature (values) finite. Widths without a fast
// version go through the reference codec.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/page/page_codec.h"

namespace lowkey::kernels::simd {

inline constexpr int kTileLanes = 16;  // f32 lanes of the widest vector

inline int tile_stride(int n) {
  return (n + kTileLanes - 1) / kTileLanes * kTileLanes;
}

// Codes at `levels` levels -> rows of local KV head `head` as a tile with stride tile_stride(page_tokens)
// (keys) or tile_stride(head_dim) (values). `rows_scratch`: f32 [page_tokens * (input_dim + head_dim)], for
// what has no fast version.
void decode_tile(const PageLayout& layout, const VectorLayout& vector, int head, PageView page, int levels,
                 float* tile, float* rows_scratch);

// Exact rows [num_tokens][dim] of `dtype` -> tokens 0 .. num_tokens-1 of the tile; the others keep their
// content.
void load_tile(Side side, const std::byte* rows, DType dtype, int num_tokens, int page_tokens, int dim,
               float* tile);

}  // namespace lowkey::kernels::simd
