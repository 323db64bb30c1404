// What one warp computes on a tile of tokens of a staged page: scores, weights, weighted sums
// (decode_attention.h).
#pragma once

#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/staging.h"

namespace lowkey::kernels::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;

// Largest magnitudes of the narrow forms' values become 127.
inline constexpr float kNibbleUnit = 127 / 2.732589483f;
inline constexpr float kCrumbUnit = 127 / 1.605217099f;

// The tables of a warp's look-ups.
struct Tables {
  uint32_t positive[2];  // 4-bit codes 8 .. 15: magnitudes; others select 0
  uint32_t negative[2];  // 0 .. 7
  uint32_t crumbs;       // 2-bit codes, signed

  __device__ explicit Tables(const EmbeddedTables& tables) {
    for (int half = 0; half < 2; ++half) {
      positive[half] = negative[half] = 0;
      for (int i = 0; i < 4; ++i) {
        positive[half] |= rounded(tables.value4[8 + 4 * half + i], kNibbleUnit) << 8 * i;
        negative[half] |= rounded(-tables.value4[4 * half + i], kNibbleUnit) << 8 * i;
      }
    }
    crumbs = 0;
    for (int i = 0; i < 4; ++i) crumbs |= rounded(tables.value2[i], kCrumbUnit) << 8 * i;
  }
  __device__ static uint32_t rounded(float value, float unit) {
    return static_cast<uint32_t>(static_cast<int>(rintf(value * unit))) & 0xff;
  }
  // Four codes in the low half of a word. A selector's top bit repeats the sign of the byte it names, and no
  // magnitude has one: codes of the other half of the table come out as 0.
  __device__ uint32_t positives(uint32_t codes) const {
    return byte_perm(positive[0], positive[1], codes ^ 0x8888u);
  }
  __device__ uint32_t negatives(uint32_t codes) const { return byte_perm(negative[0], negative[1], codes); }
  __device__ uint32_t values(uint32_t crumbs_in_nibbles) const {
    return byte_perm(crumbs, crumbs, crumbs_in_nibbles);
  }
};

// Bytes two by two as f16, from a table of all 256.
__device__ __forceinline__ uint32_t wide_pair(const uint16_t* table, uint32_t word, int first) {
  const uint32_t low = table[word >> 8 * first & 0xff], high = table[word >> (8 * first + 8) & 0xff];
  return low | high << 16;
}

// A warp's shared memory beside its ring.
template <int kTile>
struct WeightRows {
  // Rounded weights of kFastQueries queries, bytes and f16 (or bf16); rows apart so that a warp reads without
  // conflicts.
  static constexpr int kByteStride = kTile + 16;
  static constexpr int kHalfStride = kTile + 8;
  uint8_t bytes[kFastQueries][kByteStride];
  uint16_t halves[kFastQueries][kHalfStride];
};

template <FastKind kKind, int kTile, int kGroups>
struct Attention {
  static constexpr bool kCodes = kKind != FastKind::kFull;
  static constexpr bool kWide = kKind == FastKind::kMixed;
  static constexpr int kBlocks = kTile / 32;  // of 32 tokens: a lane has four neighbours in each
  static constexpr int kTiles = kTile / 16;   // rows of 16 tokens of a product

  const Tables& tables;
  const uint16_t* wide_table;
  WeightRows<kTile>& weights;
  int page_tokens;
  int lane = threadIdx.x % kWarpSize, row = lane / 4, quarter = lane % 4;

  // Of the item.
  FragmentB queries[kGroups];  // narrow: words of q and -q; else the operand itself
  float factors[2], biases[2];
  float cap;
  // Of the two queries of this lane's columns; sums are of this lane's tokens.
  float maxima[2], sums[2];
  FragmentC<float> outputs[kGroups];

  static __device__ CodeForm form(const FastSide& side, int g) {
    if (kKind == FastKind::kCrumbs) return g < side.num_groups ? side.forms[g] : CodeForm::kNone;
    if (kKind == FastKind::kNibbles) return g < side.num_groups ? side.forms[g] : CodeForm::kNone;
    return g < side.num_groups ? side.forms[g] : CodeForm::kNone;
  }
  static constexpr bool has(CodeForm form) {
    if (kKind == FastKind::kCrumbs) return form == CodeForm::kCrumbs;
    if (kKind == FastKind::kNibbles) return form == CodeForm::kNibbles;
    if (kKind == FastKind::kFull) return form == CodeForm::kFull;
    return form != CodeForm::kFull;
  }

  __device__ void begin(const StepView& step, const FastStep& fast, const DeviceItem& item,
                        const DeviceMap& map) {
    // Columns are the query heads of the item's first row, then those of the next.
    const auto query_of = [&](int column) {
      const int64_t r = item.row + column / step.group;
      return (r * (step.num_q_heads / step.group) + item.head) * kFastQueries + column % step.group;
    };
    const int columns = step.group * item.num_rows;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      uint2 words = {0, 0};
      if (row < columns)
        words = *reinterpret_cast<const uint2*>(fast.queries[query_of(row)].words[g][quarter]);
      queries[g] = {{words.x, words.y}};
      outputs[g] = {};
    }
    cap = step.soft_cap;
    for (int c = 0; c < 2; ++c) {
      const int column = 2 * quarter + c;
      const bool real = column < columns;
      const int64_t bias = int64_t{item.row + column / step.group} * step.num_q_heads +
                           item.head * step.group + column % step.group;
      factors[c] = real ? fast.factors[query_of(column)] : 0.0f;
      biases[c] = real ? map.biases[bias] : 0.0f;
      maxima[c] = -INFINITY;
      sums[c] = 0;
    }
  }

  // Scores of the tile's tokens: [block][j] of token 32 block + 4 row + j, query 2 quarter + c.
  __device__ void score(const FastSide& side, const std::byte* stage, int first,
                        float (&scores)[kBlocks][4][2]) {
    FragmentC<int> narrow[kTiles] = {};
    FragmentC<float> wide[kTiles] = {};
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const CodeForm here = form(side, g);
      if (here == CodeForm::kNone) continue;
      const auto* words = reinterpret_cast<const uint32_t*>(stage + side.groups[g]) + first + 4 * row;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        if (has(CodeForm::kNibbles) && here == CodeForm::kNibbles) {
          score_nibbles(words + quarter / 2 * page_tokens + 32 * b, queries[g], &narrow[2 * b]);
        } else if (has(CodeForm::kCrumbs) && here == CodeForm::kCrumbs) {
          score_crumbs(words + 32 * b, queries[g], &narrow[2 * b]);
        } else if (has(CodeForm::kBytes) && here == CodeForm::kBytes) {
          score_bytes(words + quarter * page_tokens + 32 * b, queries[g], &wide[2 * b]);
        } else if (has(CodeForm::kFull)) {
          score_full(words + quarter * page_tokens + 32 * b, queries[g], &wide[2 * b]);
        }
      }
    }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int tile = 2 * b + j / 2, v = j % 2 * 2 + c;
          float x = 0;
          if (kCodes) x = static_cast<float>(narrow[tile].values[v]) * factors[c];
          if (kWide || !kCodes) x += wide[tile].values[v];
          scores[b][j][c] = x;
        }
      }
    }
  }

  static __device__ uint4 load_four(const uint32_t* words) {
    return *reinterpret_cast<const uint4*>(words);
  }

  // A word has eight features of a token; this lane has its half. `c`: two tiles: tokens 0, 1 and 2, 3.
  __device__ void score_nibbles(const uint32_t* words, const FragmentB& query, FragmentC<int>* c) const {
    const uint4 loaded = load_four(words);
    const uint32_t w[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
    const int shift = quarter % 2 * 16;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const uint32_t a = w[2 * t] >> shift, b = w[2 * t + 1] >> shift;
      multiply_u8_s8_k16(c[t], tables.positives(a), tables.positives(b), query.words[0]);
      multiply_u8_s8_k16(c[t], tables.negatives(a), tables.negatives(b), query.words[1]);
    }
  }
  // A word has all sixteen features; this lane has every other of one half.
  __device__ void score_crumbs(const uint32_t* words, const FragmentB& query, FragmentC<int>* c) const {
    const uint4 loaded = load_four(words);
    const uint32_t w[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
    const int shift = quarter % 2 * 2 + quarter / 2 * 16;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const uint32_t a = w[2 * t] >> shift & 0x3333u, b = w[2 * t + 1] >> shift & 0x3333u;
      multiply_s8_s8_k16(c[t], tables.values(a), tables.values(b), query.words[0]);
    }
  }
  __device__ void score_bytes(const uint32_t* words, const FragmentB& query, FragmentC<float>* c) const {
    const uint4 loaded = load_four(words);
    const uint32_t w[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const FragmentA a = {{wide_pair(wide_table, w[2 * t], 0), wide_pair(wide_table, w[2 * t + 1], 0),
                            wide_pair(wide_table, w[2 * t], 2), wide_pair(wide_table, w[2 * t + 1], 2)}};
      multiply_f16(c[t], a, query);
    }
  }
  // Pairs of features of a token: words quarter and quarter + 4.
  __device__ void score_full(const uint32_t* words, const FragmentB& query, FragmentC<float>* c) const {
    const uint4 low = load_four(words), high = load_four(words + 4 * page_tokens);
    multiply_bf16(c[0], {{low.x, low.y, high.x, high.y}}, query);
    multiply_bf16(c[1], {{low.z, low.w, high.z, high.w}}, query);
  }

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
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const CodeForm here = form(side, g);
      float sum[4] = {0, 0, 0, 0};
      if (here != CodeForm::kNone) {
        const auto* words = reinterpret_cast<const uint32_t*>(stage + side.groups[g]) + 2 * row;
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
