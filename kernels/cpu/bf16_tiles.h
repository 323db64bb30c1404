// Keys and values in pairs of bf16, as products of pairs want them (vdpbf16ps) and as exact pages have them
// (kernels/page/page_layout.h):
//   keys [feature / 2][token][2]     values [group of 16 features][token / 2][16 features][2]
// with `extent` tokens. Elements only move, so they may be any 16 bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

// Of one KV head.
struct Bf16Tile {
  const uint16_t* keys = nullptr;
  const uint16_t* values = nullptr;
};

inline constexpr int kTileStep = 16;  // features and tokens of a tile are multiples of it

// Whether pages hold the vector in this form, and where it begins in its slab.
bool is_in_pairs(const PageLayout& layout, const VectorLayout& vector);
inline const Plane& pairs_of(const PageLayout& layout, const VectorLayout& vector) {
  return layout.planes[vector.first_plane];
}

// Rows [tokens][dim] to the first `tokens` of `extent`; zeros behind. REQUIRES: has_bf16_pairs(), `dim` and
// `extent` multiples of kTileStep.
void make_key_pairs(const uint16_t* rows, int tokens, int extent, int dim, uint16_t* pairs);
void make_value_pairs(const uint16_t* rows, int tokens, int extent, int dim, uint16_t* pairs);

}  // namespace lowkey::kernels
