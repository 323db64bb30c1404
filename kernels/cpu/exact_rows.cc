#include "kernels/cpu/exact_rows.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/page_tile.h"
#include "kernels/cpu/scratch.h"

namespace lowkey::kernels {

void ExactTiles::see(const ExactRows& rows, const AttentionState& state) {
  return rows.queries.rounded != nullptr ? see_pairs(rows, state) : see_f32(rows, state);
}

void ExactTiles::see_pairs(const ExactRows& x, const AttentionState& state) {
  const int extent = simd::tile_stride(x.tokens);
  const size_t elements = static_cast<size_t>(extent) * x.dim;
  uint16_t* keys = grow_aligned(key_pairs_, elements);
  uint16_t* values = grow_aligned(value_pairs_, elements);
  make_key_pairs(reinterpret_cast<const uint16_t*>(x.keys), x.tokens, extent, x.dim, keys);
  make_value_pairs(reinterpret_cast<const uint16_t*>(x.values), x.tokens, extent, x.dim, values);
  grow(begin_, x.queries.count);
  grow(end_, x.queries.count);
  for (int i = 0; i < x.queries.count; ++i) {
    begin_[i] = std::max(0, x.hidden + i / x.group);
    end_[i] = std::min(x.tokens, x.first_valid + i / x.group);
  }
  const Bf16Tile tile{keys, values};
  attend_pairs({.tiles = &tile,
                .num_tiles = 1,
                .tokens = extent,
                .key_dim = x.dim,
                .value_dim = x.dim,
                .queries = x.queries.rounded,
                .query_stride = x.queries.stride,
                .rows = x.queries.count,
                .begin = begin_.data(),
                .end = end_.data(),
                .soft_cap = x.queries.soft_cap,
                .state = state},
               scratch_);
}

// Products run over whole tiles; tokens out of sight get weight 0.
void ExactTiles::see_f32(const ExactRows& x, const AttentionState& state) {
  const int extent = simd::tile_stride(x.tokens), value_stride = simd::tile_stride(x.dim);
  const int count = x.queries.count;
  grow(key_tile_, static_cast<size_t>(x.dim) * extent);
  grow(value_tile_, static_cast<size_t>(extent) * value_stride);
  grow(scores_, static_cast<size_t>(count) * extent);
  std::fill_n(key_tile_.data(), static_cast<size_t>(x.dim) * extent, 0.0f);
  std::fill_n(value_tile_.data(), static_cast<size_t>(extent) * value_stride, 0.0f);
  simd::load_tile(Side::kKey, x.keys, x.dtype, x.tokens, extent, x.dim, key_tile_.data());
  simd::load_tile(Side::kValue, x.values, x.dtype, x.tokens, extent, x.dim, value_tile_.data());
  float* scores = scores_.data();
  simd::multiply_tile({x.queries.rows, x.queries.stride, key_tile_.data(), extent, scores, extent, count,
                       x.dim, extent, /*accumulate=*/false});
  for (int i = 0; i < count; ++i) {
    float* row = scores + static_cast<size_t>(i) * extent;
    if (x.queries.soft_cap != 0) simd::soft_cap_row(row, 0, x.queries.soft_cap, extent);
    const int out_of_sight = x.hidden + i / x.group;
    if (out_of_sight > 0) std::fill_n(row, out_of_sight, -std::numeric_limits<float>::infinity());
  }
  simd::softmax_rows({.scores = scores,
                      .stride = extent,
                      .rows = count,
                      .tokens = x.tokens,
                      .first_valid = x.first_valid,
                      .group = x.group,
                      .maximum = state.maximum,
                      .sum = state.sum,
                      .acc = state.acc,
                      .acc_stride = state.stride,
                      .dim = value_stride});
  simd::multiply_tile({scores, extent, value_tile_.data(), value_stride, state.acc, state.stride, count,
                       extent, value_stride, /*accumulate=*/true});
}

}  // namespace lowkey::kernels
