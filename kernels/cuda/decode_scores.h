// What one warp of decode_attention.cu computes on a tile of tokens of a staged page: scores.
#pragma once

#include "kernels/cuda/code_tables.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {

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

// What the inner loop reads of a FastSide: a few wide loads per page instead of three narrow ones per group.
template <int kGroups>
struct SideTables {
  static_assert(kGroups == 4 || kGroups == 8);
  uint32_t begin[kGroups];  // in the stage
  uint32_t forms[2];        // a byte each

  __device__ explicit SideTables(const FastSide& side) {
#pragma unroll
    for (int i = 0; i < kGroups / 4; ++i) {
      const uint4 four = reinterpret_cast<const uint4*>(side.groups)[i];
      begin[4 * i] = four.x, begin[4 * i + 1] = four.y;
      begin[4 * i + 2] = four.z, begin[4 * i + 3] = four.w;
    }
    const uint2 bytes = *reinterpret_cast<const uint2*>(side.forms);
    forms[0] = bytes.x, forms[1] = bytes.y;
  }
  __device__ CodeForm form(int group) const {
    return static_cast<CodeForm>(forms[group / 4] >> 8 * (group % 4) & 0xff);
  }
};
static_assert(sizeof(CodeForm) == 1 && kMaxFastGroups == 8);

template <FastKind kKind, int kTile, int kGroups>
struct DecodeScores {
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
    const SideTables<kGroups> groups(side);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const CodeForm here = groups.form(g);
      if (here == CodeForm::kNone) continue;
      const auto* words = reinterpret_cast<const uint32_t*>(stage + groups.begin[g]) + first + 4 * row;
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
};

}  // namespace lowkey::kernels::cuda
