// What one warp of prefill_attention.cu does with its rows: scores (prefill_scores.h), online softmax, sums
// of values, results.
#pragma once

#include "kernels/cuda/prefill_scores.h"

namespace lowkey::kernels::cuda {

template <bool kBytes, int kGroups>
struct PrefillWarp : PrefillScores<kBytes, kGroups> {
  using Scores = PrefillScores<kBytes, kGroups>;
  using Rows = typename Scores::Rows;
  using Rows::acc;
  using Rows::clear;
  using Rows::head;
  using Rows::idle;
  using Rows::lane;
  using Rows::multiply_split;
  using Rows::operand;
  using Rows::own_row;
  using Rows::quarter;
  using Rows::query_of;
  using Rows::row;
  using Rows::row_of;
  using Rows::rows;
  using Rows::split_in_place;
  using Rows::step;
  using Rows::tile;
  using Rows::warp;
  using Scores::PrefillScores;
  using Scores::score_bf16;
  using Scores::score_bytes;
  using Tile = KeyValueTile<kBytes, kGroups>;
  static constexpr int kTiles = Rows::kTiles, kParts = Rows::kParts;

  float maxima[2 * kMs], sums[2 * kMs];  // sums are of this lane's tokens
  bool has_flushed = false;

  __device__ void begin() {
    for (int i = 0; i < 2 * kMs; ++i) {
      maxima[i] = -INFINITY;
      sums[i] = 0;
    }
    rows.flushed_maximum[lane] = -INFINITY;
    rows.flushed_sum[lane] = 0;
    clear();
  }

  // Scores become weights; the row's sums so far shrink.
  __device__ void weigh(const Tile& in, int block, int first, const Seen& sees, float (&x)[kMs][4][4]) {
    const float* key_norms = in.key_norms + 32 * block + 8 * quarter;
    const float* value_norms = in.value_norms + 32 * block + 8 * quarter;
    const bool masked = first < sees.most_first || first + 32 > sees.least_limit;
    const float cap = step.soft_cap * kLog2e;
    bool shrinks = false;
    float shrink[2 * kMs];
#pragma unroll
    for (int i = 0; i < 2 * kMs; ++i) {
      float largest = maxima[i];
      const float factor = rows.factor[own_row(i)], bias = rows.bias[own_row(i)];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = x[i / 2][j][i % 2 * 2 + c];
          score = fmaf(score * factor, key_norms[2 * j + c], bias);
          if (cap != 0.0f) score = cap * tanhf(score / cap);
          if (masked) {
            const int token = first + 8 * quarter + 2 * j + c;
            if (token < rows.first[own_row(i)] || token >= rows.limit[own_row(i)]) score = -INFINITY;
          }
          largest = fmaxf(largest, score);
        }
      }
      largest = max_over<4>(largest);
      const float base = largest == -INFINITY ? 0.0f : largest;
      shrink[i] = exp2_fast(maxima[i] - base);
      shrinks |= largest != maxima[i];
      maxima[i] = largest;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = x[i / 2][j][i % 2 * 2 + c];
          score = exp2_fast(score - base);
          sum += score;
          score *= value_norms[2 * j + c];
        }
      }
      sums[i] = fmaf(sums[i], shrink[i], sum);
    }
    if (!any_lane(shrinks)) return;
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int v = 0; v < 4; ++v) acc[m][t].values[v] *= shrink[2 * m + v / 2];
      }
    }
  }

  __device__ void add_values(const Tile& in, int block, int value_groups, const float (&x)[kMs][4][4]) {
    FragmentA weights[kMs][2];
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const float(&a)[4] = x[m][2 * s];
        const float(&b)[4] = x[m][2 * s + 1];
        weights[m][s] = {
            {pack_bf16(a[0], a[1]), pack_bf16(a[2], a[3]), pack_bf16(b[0], b[1]), pack_bf16(b[2], b[3])}};
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (t / 2 >= value_groups) continue;
      const uint4 value = in.values[(block * kTiles + t) * kWarpSize + lane];
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
        multiply_bf16(acc[m][t], weights[m][0], {{value.x, value.y}});
        multiply_bf16(acc[m][t], weights[m][1], {{value.z, value.w}});
      }
    }
  }

  // A tile of `count` tokens from slot `first` on. `kExact`: of exact rows.
  template <bool kExact>
  __device__ void attend(const Tile& in, int first, int count, int value_groups, const Seen& sees) {
    if (idle()) return;
    for (int block = 0; block < (count + 31) / 32; ++block) {
      const int begin = first + 32 * block;
      if (begin >= sees.most_limit || begin + 32 <= sees.least_first) continue;
      float x[kMs][4][4];
      if constexpr (kBytes && !kExact) {
        score_bytes(in, block, x);
      } else {
        score_bf16(in, block, x);
      }
      weigh(in, block, begin, sees, x);
      add_values(in, block, value_groups, x);
    }
  }

  // What remains of a row's results in the output beside those at hand.
  __device__ float kept(int i) const {
    const float before = rows.flushed_maximum[own_row(i)];
    return before == -INFINITY ? 0.0f : exp2_fast(before - maxima[i]);
  }

  // Sums in the coordinates of a segment's values become the head's own: in the output, where those of
  // earlier segments are, or, of the last one under the identity, in place.
  __device__ void end_segment(const DeviceVector& value, const FastSide& side, bool last) {
    if (idle()) return;
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int f = 8 * t + 2 * quarter + c;
          float scale =
              f < value.layout.dim ? 1 / unit_of(Expander::form_of(side, f / kGroupFeatures)) : 0.0f;
          if (scale != 0.0f && value.scale != nullptr) scale *= value.scale[f];
          acc[m][t].values[c] *= scale;
          acc[m][t].values[2 + c] *= scale;
        }
      }
    }
    if (last && value.value_map == nullptr && value.mean == nullptr && !has_flushed) return;
    if (value.value_map != nullptr) {
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) split_in_place(acc[m][t]);
      }
    }
    float keep[2 * kMs], own[2 * kMs];
    for (int i = 0; i < 2 * kMs; ++i) {
      float &flushed_maximum = rows.flushed_maximum[own_row(i)], &flushed_sum = rows.flushed_sum[own_row(i)];
      own[i] = sum_over<4>(sums[i]);
      keep[i] = kept(i);
      const float sum = fmaf(flushed_sum, keep[i], own[i]);
      sync_warp();
      if (quarter == 0) flushed_sum = sum, flushed_maximum = maxima[i];
      sums[i] = 0;
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (8 * t >= step.head_dim) continue;
#pragma unroll
      for (int m = 0; m < kMs; ++m) {
        FragmentC<float> c = acc[m][t];
        if (value.value_map != nullptr) c = map_values(m, t, value);
        for (int h = 0; h < 2; ++h) {
          const int i = 2 * m + h;
          if (row_of(i) >= tile.num_rows * step.group) continue;
          const int f = 8 * t + 2 * quarter;
          float* out = step.out + query_of(row_of(i)) * step.head_dim + f;
          for (int e = 0; e < 2; ++e) {
            float y = c.values[2 * h + e];
            if (value.mean != nullptr) y = fmaf(value.mean[f + e], own[i], y);
            out[e] = has_flushed ? fmaf(out[e], keep[i], y) : y;
          }
        }
      }
    }
    has_flushed = true;
    clear();
  }
  __device__ FragmentC<float> map_values(int m, int t, const DeviceVector& value) const {
    const int parts = map_parts(value.layout.dim);
    FragmentC<float> c{};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (part >= parts) continue;
      const uint4* chunk = value.value_map + (int64_t{t * parts + part} * kWarpSize + lane) * 2;
      const uint4 high = chunk[0], low = chunk[1];
      multiply_split(c, acc[m][4 * part], acc[m][4 * part + 1], {{high.x, high.y}}, {{low.x, low.y}});
      multiply_split(c, acc[m][4 * part + 2], acc[m][4 * part + 3], {{high.z, high.w}}, {{low.z, low.w}});
    }
    return c;
  }

  __device__ void store() const {
    if (idle()) return;
#pragma unroll
    for (int i = 0; i < 2 * kMs; ++i) {
      const float keep = kept(i);
      const float total = fmaf(rows.flushed_sum[own_row(i)], keep, sum_over<4>(sums[i])), inverse = 1 / total;
      if (row_of(i) >= tile.num_rows * step.group) continue;
      float* out = step.out + query_of(row_of(i)) * step.head_dim + 2 * quarter;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (8 * t >= step.head_dim) continue;
        for (int e = 0; e < 2; ++e) {
          const float y = acc[i / 2][t].values[i % 2 * 2 + e];
          out[8 * t + e] = (has_flushed ? fmaf(out[8 * t + e], keep, y) : y) * inverse;
        }
      }
    }
  }
};

}  // namespace lowkey::kernels::cuda
