// Pages to f32 tiles in Highway: every quantizer and width. A tile holds one stored vector of one page, ready
// for products without horizontal sums: keys as [feature][token], values as [token][feature]. Both strides
// are multiples of kTileLanes; behind the last feature of a value row lies anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/page/page_codec.h"

namespace lowkey::kernels::simd {

inline constexpr int kTileLanes = 16;  // f32 lanes of the widest vector

inline int tile_stride(int n) {
  return (n + kTileLanes - 1) / kTileLanes * kTileLanes;
}

// f32 numbers of a tile of `dim` features. Values are decoded by whole words of codes: up to 32 tokens.
inline size_t tile_floats(Side side, int page_tokens, int dim) {
  return side == Side::kKey ? static_cast<size_t>(dim) * tile_stride(page_tokens)
                            : static_cast<size_t>(page_tokens + 31) / 32 * 32 * tile_stride(dim);
}

// Of one thread, between calls.
struct TileScratch {
  std::vector<float> scalars;      // norm of every token
  std::vector<float> lows, steps;  // affine pairs
  std::vector<int32_t> blocks;     // first pair of the block that a token or feature is in
};

// Embedded codes leave the static scale out of a tile: it belongs into the maps (HeadMaps). The other
// quantizers have none.
inline bool has_static_scale(const VectorLayout& vector) {
  return vector.quantizer == Quantizer::kEmbedded && vector.scale != kNoNumbers;
}

// What the first `levels` levels say of the stored features (decode_features() without the static scale), as
// a tile of vector.dim features; features without bits are 0.
void decode_tile(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels, float* tile,
                 TileScratch& scratch);

// Exact rows [num_tokens][dim] of `dtype` -> tokens 0 .. num_tokens-1 of the tile; the others keep their
// content.
void load_tile(Side side, const std::byte* rows, DType dtype, int num_tokens, int page_tokens, int dim,
               float* tile);

}  // namespace lowkey::kernels::simd
