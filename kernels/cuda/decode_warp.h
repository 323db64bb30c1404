// What one warp of decode_attention.cu does with an item: scores (decode_scores.h), weights, weighted sums.
#pragma once

#include "kernels/cuda/decode_scores.h"
#include "kernels/cuda/step_view.h"

namespace lowkey::kernels::cuda {

template <FastKind kKind, int kTile, int kGroups>
struct DecodeWarp : DecodeScores<kKind, kTile, kGroups> {
  using Scores = DecodeScores<kKind, kTile, kGroups>;
  using Scores::biases;
  using Scores::cap;
  using Scores::has;
  using Scores::kBlocks;
  using Scores::kCodes;
  using Scores::kTiles;
  using Scores::kWide;
  using Scores::maxima;
  using Scores::outputs;
  using Scores::page_tokens;
  using Scores::quarter;
  using Scores::row;
  using Scores::score;
  using Scores::sums;
  using Scores::tables;
  using Scores::weights;
  using Scores::wide_table;

  // Norms of this lane's four tokens of a block.
  static __device__ void load_norms(const FastSide& side, const std::byte* stage, int token,
                                    float (&norms)[4]) {
    if (!side.has_norm) {
      for (float& norm : norms) norm = 1;
      return;
    }
    const uint2 loaded = *reinterpret_cast<const uint2*>(stage + side.norms + 2 * token);
    norms[0] = as_float(loaded.x << 16);
    norms[1] = as_float(loaded.x & 0xffff0000u);
    norms[2] = as_float(loaded.y << 16);
    norms[3] = as_float(loaded.y & 0xffff0000u);
  }

  // Online softmax of the tile; weights go to shared memory. `shrinks`: of what was summed up; `units`: of
  // the weights' bytes.
  __device__ void weigh(const FastPlan& plan, const std::byte* stage, int first, int masked,
                        float (&scores)[kBlocks][4][2], float (&shrinks)[2], float (&units)[2]) {
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int token = first + 32 * b + 4 * row;
      float norms[4];
      load_norms(plan.key, stage, token, norms);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float x = fmaf(scores[b][j][c], norms[j], biases[c]);
          if (cap != 0.0f) x = cap * tanhf(x / cap);
          scores[b][j][c] = token + j < masked ? -INFINITY : x * kLog2e;
          largest[c] = fmaxf(largest[c], scores[b][j][c]);
        }
      }
    }
    float heaviest[2] = {0, 0};
    for (int c = 0; c < 2; ++c) {
      const float maximum = fmaxf(maxima[c], max_over_rows(largest[c]));
      shrinks[c] = maxima[c] == -INFINITY ? 0.0f : exp2_fast(maxima[c] - maximum);
      maxima[c] = maximum;
      sums[c] *= shrinks[c];
    }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      float norms[4];
      load_norms(plan.value, stage, first + 32 * b + 4 * row, norms);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float x = scores[b][j][c];
          x = x == -INFINITY ? 0.0f : exp2_fast(x - maxima[c]);
          sums[c] += x;
          scores[b][j][c] = x * norms[j];
          heaviest[c] = fmaxf(heaviest[c], scores[b][j][c]);
        }
      }
    }
    store_weights(scores, heaviest, units);
  }

  __device__ void store_weights(const float (&scores)[kBlocks][4][2], const float (&heaviest)[2],
                                float (&units)[2]) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int query = 2 * quarter + c;
      const float most = max_over_rows(heaviest[c]);
      // Wide codes' weights are f16 of at most 1, and share the narrow ones' unit.
      const float inverse = most > 1e-30f ? (kCodes ? 255 / most : 1.0f) : 0.0f;
      units[c] = most > 1e-30f ? (kCodes ? most / 255 : 1.0f) : 0.0f;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        uint32_t bytes = 0, halves[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float x = scores[b][j][c] * inverse;
          if (kCodes) bytes |= static_cast<uint32_t>(rintf(x)) << 8 * j;
          if (kWide) halves[j / 2] |= static_cast<uint32_t>(to_f16(x)) << 16 * (j % 2);
          if (!kCodes) halves[j / 2] |= static_cast<uint32_t>(to_bf16(x)) << 16 * (j % 2);
        }
        const int token = 32 * b + 4 * row;
        if (kCodes) *reinterpret_cast<uint32_t*>(&weights.bytes[query][token]) = bytes;
        if (kWide || !kCodes)
          *reinterpret_cast<uint2*>(&weights.halves[query][token]) = uint2{halves[0], halves[1]};
      }
    }
    sync_warp();
  }

  // Of the lanes with the same columns.
  static __device__ float max_over_rows(float x) {
    x = fmaxf(x, shuffle_xor(x, 4));
    x = fmaxf(x, shuffle_xor(x, 8));
    return fmaxf(x, shuffle_xor(x, 16));
  }

  // outputs = outputs * shrinks + weights V. Rows of a product: features 2 r and, from 8 on, 2 (r - 8) + 1.
  __device__ void add_values(const FastSide& side, const std::byte* stage, int first,
                             const float (&shrinks)[2], const float (&units)[2]) {
    FragmentB natural[kBlocks], spread[kBlocks];
    if (kCodes) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const uint8_t* bytes = weights.bytes[row] + 32 * b;
        const uint2 own = *reinterpret_cast<const uint2*>(bytes + 8 * quarter);
        natural[b] = {{own.x, own.y}};
        if (has(CodeForm::kCrumbs)) {
          const uint4 half = *reinterpret_cast<const uint4*>(bytes + quarter / 2 * 16);
          const uint32_t every_other = quarter % 2 == 0 ? 0x6420u : 0x7531u;
          spread[b] = {{byte_perm(half.x, half.y, every_other), byte_perm(half.z, half.w, every_other)}};
        }
      }
    }
    const SideTables<kGroups> groups(side);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const CodeForm here = groups.form(g);
      float sum[4] = {0, 0, 0, 0};
      if (here != CodeForm::kNone) {
        const auto* words = reinterpret_cast<const uint32_t*>(stage + groups.begin[g]) + 2 * row;
        if (has(CodeForm::kNibbles) && here == CodeForm::kNibbles) {
          add_nibbles(words + (first / 8 + quarter) * kGroupFeatures, natural, sum);
        } else if (has(CodeForm::kCrumbs) && here == CodeForm::kCrumbs) {
          add_crumbs(words + (first / 16 + quarter / 2) * kGroupFeatures, spread, sum);
        } else if (has(CodeForm::kBytes) && here == CodeForm::kBytes) {
          add_bytes(words + (first / 4 + quarter) * kGroupFeatures, sum);
        } else if (has(CodeForm::kFull)) {
          add_full(words + (first / 2 + quarter) * kGroupFeatures, sum);
        }
      }
#pragma unroll
      for (int v = 0; v < 4; ++v)
        outputs[g].values[v] = fmaf(sum[v], units[v % 2], outputs[g].values[v] * shrinks[v % 2]);
    }
    sync_warp();
  }

  static __device__ uint2 load_two(const uint32_t* words) {
    return *reinterpret_cast<const uint2*>(words);
  }

  __device__ void add_nibbles(const uint32_t* words, const FragmentB* weight, float (&sum)[4]) const {
    FragmentC<int> positive{}, negative{};
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const uint2 w = load_two(words + 4 * b * kGroupFeatures);
      const uint32_t x = w.x >> 16, y = w.y >> 16;
      multiply_u8_u8(
          positive,
          {{tables.positives(w.x), tables.positives(w.y), tables.positives(x), tables.positives(y)}},
          weight[b]);
      multiply_u8_u8(
          negative,
          {{tables.negatives(w.x), tables.negatives(w.y), tables.negatives(x), tables.negatives(y)}},
          weight[b]);
    }
#pragma unroll
    for (int v = 0; v < 4; ++v)
      sum[v] = static_cast<float>(positive.values[v] - negative.values[v]) * (1 / kNibbleUnit);
  }
  __device__ void add_crumbs(const uint32_t* words, const FragmentB* weight, float (&sum)[4]) const {
    FragmentC<int> c{};
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const uint2 w = load_two(words + 2 * b * kGroupFeatures);
      const uint32_t x = w.x >> quarter % 2 * 2 & 0x33333333u, y = w.y >> quarter % 2 * 2 & 0x33333333u;
      multiply_s8_u8(c,
                     {{tables.values(x), tables.values(y), tables.values(x >> 16), tables.values(y >> 16)}},
                     weight[b]);
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) sum[v] = static_cast<float>(c.values[v]) * (1 / kCrumbUnit);
  }
  __device__ void add_bytes(const uint32_t* words, float (&sum)[4]) const {
    FragmentC<float> c{};
#pragma unroll
    for (int s = 0; s < kTiles; ++s) {
      const uint2 w = load_two(words + 4 * s * kGroupFeatures);
      const uint2 weight = *reinterpret_cast<const uint2*>(&weights.halves[row][16 * s + 4 * quarter]);
      multiply_f16(c,
                   {{wide_pair(wide_table, w.x, 0), wide_pair(wide_table, w.y, 0),
                     wide_pair(wide_table, w.x, 2), wide_pair(wide_table, w.y, 2)}},
                   {{weight.x, weight.y}});
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) sum[v] = c.values[v];
  }
  __device__ void add_full(const uint32_t* words, float (&sum)[4]) const {
    FragmentC<float> c{};
#pragma unroll
    for (int s = 0; s < kTiles; ++s) {
      const uint2 low = load_two(words + 8 * s * kGroupFeatures),
                  high = load_two(words + (8 * s + 4) * kGroupFeatures);
      const auto* weight = reinterpret_cast<const uint32_t*>(&weights.halves[row][16 * s + 2 * quarter]);
      multiply_bf16(c, {{low.x, low.y, high.x, high.y}}, {{weight[0], weight[4]}});
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) sum[v] = c.values[v];
  }

  __device__ void page(const FastPlan& plan, const std::byte* stage, int masked) {
    for (int first = masked / kTile * kTile; first < page_tokens; first += kTile) {
      float scores[kBlocks][4][2], shrinks[2], units[2];
      score(plan.key, stage, first, scores);
      weigh(plan, stage, first, masked, scores, shrinks, units);
      add_values(plan.value, stage, first, shrinks, units);
    }
  }

  __device__ void store(const StepView& step, const DeviceVector& value, const DeviceItem& item,
                        const Partials& partials) const {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float sum = sums[c];
      for (int mask = 4; mask < kWarpSize; mask *= 2) sum += shuffle_xor(sum, mask);
      const int column = 2 * quarter + c;
      if (column >= step.group * item.num_rows) continue;
      const int64_t state = item.state + int64_t{column / step.group} * item.row_states;
      float* target = partials.of(state, step.group, column % step.group);
      if (row == 0) {
        target[0] = maxima[c] * (1 / kLog2e);
        target[1] = sum;
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const int f = g * kGroupFeatures + 2 * row + odd;
          if (f >= value.layout.dim) continue;
          target[2 + f] = outputs[g].values[2 * odd + c] * (value.scale == nullptr ? 1.0f : value.scale[f]);
        }
      }
    }
  }
};

}  // namespace lowkey::kernels::cuda
