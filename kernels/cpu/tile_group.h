// One group of features of one page on its way into a tile: what page_tile.cc hands to its vector code.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/page/embedded_quantizer.h"

namespace lowkey::kernels::simd {

// The planes of one group of features at the levels read, high bits first. Eight are the most: one bit each.
struct GroupPlanes {
  int feature = 0, features = 0;
  int count = 0;
  int bits = 0;  // of all of them
  std::array<const uint32_t*, 8> words;
  std::array<int, 8> widths;
};

// Values of the embedded codes of one width: table[code] up to 4 bits, table[code >> fine] + step[code >>
// fine] * (low bits) beyond.
struct CodeValues {
  explicit CodeValues(int bits) : fine(bits > 4 ? bits - 4 : 0) {
    for (int i = 0; i < 1 << (bits - fine); ++i) {
      table[i] = embedded_value(static_cast<uint8_t>(i << fine), bits);
      if (fine > 0) step[i] = embedded_value(static_cast<uint8_t>((i << fine) + 1), bits) - table[i];
    }
  }
  int fine;
  alignas(64) float table[16] = {};
  alignas(64) float step[16] = {};
};

template <int kBits>
const CodeValues& code_values_of() {
  static const CodeValues values(kBits);
  return values;
}

inline const CodeValues& code_values(int bits) {
  switch (bits) {
    case 1:
      return code_values_of<1>();
    case 2:
      return code_values_of<2>();
    case 3:
      return code_values_of<3>();
    case 4:
      return code_values_of<4>();
    case 5:
      return code_values_of<5>();
    case 6:
      return code_values_of<6>();
    case 7:
      return code_values_of<7>();
    default:
      return code_values_of<8>();
  }
}

// One group of one vector of a page, and its place in the tile.
struct GroupTask {
  GroupPlanes planes;
  int tokens = 0;
  float* tile = nullptr;  // of the group's first feature
  int stride = 0;
};

// Dynamic scales of an affine vector as f32. The pair of (token, feature): channel axis, blocks[token] +
// feature; token axis, blocks[feature] + token.
struct AffineScales {
  const float* lows;
  const float* steps;
  const int32_t* blocks;
  bool channel;
  bool whole_vectors;  // a block is whole vectors of any target
};

}  // namespace lowkey::kernels::simd
