// Scores of a warp's rows of prefill_attention.cu with a block of 32 tokens.
#pragma once

#include "kernels/cuda/prefill_rows.h"

namespace lowkey::kernels::cuda {

template <bool kBytes, int kGroups>
struct PrefillScores : PrefillRows<kBytes, kGroups> {
  using Rows = PrefillRows<kBytes, kGroups>;
  using Rows::lane;
  using Rows::own_row;
  using Rows::PrefillRows;
  using Rows::queries;
  using Rows::rows;
  using Tile = KeyValueTile<kBytes, kGroups>;
  static constexpr int kParts = Rows::kParts;

  __device__ FragmentA query_operand(int index) const {
    const uint4 words = queries[index * kWarpSize + lane];
    return {{words.x, words.y, words.z, words.w}};
  }
  // Scores of a block of 32 tokens: x[m][j][v] is of row 2 m + v / 2, token 8 quarter + 2 j + v % 2.
  __device__ void score_bytes(const Tile& in, int block, float (&x)[kMs][4][4]) const {
    FragmentC<int> c[kMs][4];
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
      const int upper = rows.offset[own_row(2 * m)], lower = rows.offset[own_row(2 * m + 1)];
#pragma unroll
      for (int j = 0; j < 4; ++j) c[m][j] = {{upper, upper, lower, lower}};
    }
#pragma unroll
    for (int part = 0; part < Tile::kKeyParts; ++part) {
      FragmentA q[kMs][2];
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
#pragma unroll
        for (int e = 0; e < 2; ++e) q[m][e] = query_operand(m * kParts + 2 * part + e);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4 key = in.keys[((block * 4 + j) * Tile::kKeyParts + part) * kWarpSize + lane];
#pragma unroll
        for (int m = 0; m < kMs; ++m) {
          multiply_s8_u8(c[m][j], q[m][0], {{key.x, key.y}});
          multiply_s8_u8(c[m][j], q[m][1], {{key.z, key.w}});
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int v = 0; v < 4; ++v) x[m][j][v] = static_cast<float>(c[m][j].values[v]);
      }
    }
  }
  __device__ void score_bf16(const Tile& in, int block, float (&x)[kMs][4][4]) const {
    FragmentC<float> c[kMs][4] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      FragmentA q[kMs][2];
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
#pragma unroll
        for (int e = 0; e < 2; ++e) q[m][e] = query_operand(m * kGroups + 2 * part + e);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4 key = in.keys[((block * 4 + j) * kParts + part) * kWarpSize + lane];
#pragma unroll
        for (int m = 0; m < kMs; ++m) {
          multiply_bf16(c[m][j], q[m][0], {{key.x, key.y}});
          multiply_bf16(c[m][j], q[m][1], {{key.z, key.w}});
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int v = 0; v < 4; ++v) x[m][j][v] = c[m][j].values[v];
      }
    }
  }
};

}  // namespace lowkey::kernels::cuda
