// Tiles of K and V in shared memory for prefill_attention.cu, and their expansion from codes.
//
// A tile has up to 64 tokens, in blocks of 32. Its numbers lie in chunks of 16 bytes in the order in which
// the lanes of a product want them ("lane" = 4 n + q: column n of the operand, k's of quarter q):
//
// K, bytes: chunk [block][j][features / 64][lane]: column n of product tile j is token 8 (n / 2) + 2 j + n %
// 2
//   of the block; the four words are features 8 o .. 8 o + 7 of the octets o = 8 (features / 64) + q and o
//   + 4. A byte is 128 + the value in units of its form.
// K, bf16: chunk [block][j][features / 32][lane]: the words are the four pairs of octet 4 (features / 32) +
// q. V, bf16: chunk [block][features / 8][lane]: column n is feature n, the words are the pairs of tokens
//   8 q .. 8 q + 7.
//
// So scores come out with tokens 8 q .. 8 q + 7 of a row in lanes of quarter q, and become the operand of
// the product with V where they are.
#pragma once

#include "kernels/cuda/code_tables.h"
#include "kernels/cuda/page_codes.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {

inline constexpr int kPrefillTile = 64;

// Pairs of bf16: a * b + c, in f32, rounded once.
__device__ __forceinline__ uint32_t fma_bf16_pairs(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  const auto one = [](uint32_t x, uint32_t y, uint32_t z) {
    return to_bf16(from_bf16(x & 0xffff) * from_bf16(y & 0xffff) + from_bf16(z & 0xffff));
  };
  return one(a, b, c) | static_cast<uint32_t>(one(a >> 16, b >> 16, c >> 16)) << 16;
#endif
}

// Four values in units of their form: magnitudes of the positive ones, and of the others.
struct Quad {
  uint32_t positive, negative;

  __device__ uint32_t biased() const { return 0x80808080u + positive - negative; }  // no byte carries
  // bf16 of the first two, of the last two: 128 + x has x as its mantissa.
  __device__ uint2 pairs() const {
    constexpr uint32_t kMinusOne = 0xbf80bf80u;
    uint2 result;
    result.x =
        fma_bf16_pairs(byte_perm(negative, 0x43u, 0x4140u), kMinusOne, byte_perm(positive, 0x43u, 0x4140u));
    result.y =
        fma_bf16_pairs(byte_perm(negative, 0x43u, 0x4342u), kMinusOne, byte_perm(positive, 0x43u, 0x4342u));
    return result;
  }
};

// Look-ups of narrow codes; Tables (code_tables.h) has the same numbers.
struct QuadTables {
  uint32_t positive[2], negative[2];  // nibbles 8 .. 15, 0 .. 7
  uint32_t positive_crumbs, negative_crumbs;

  __device__ explicit QuadTables(const EmbeddedTables& tables) {
    const Tables nibbles(tables);
    positive_crumbs = negative_crumbs = 0;
    for (int half = 0; half < 2; ++half) {
      positive[half] = nibbles.positive[half];
      negative[half] = nibbles.negative[half];
    }
    for (int i = 0; i < 4; ++i) {
      positive_crumbs |= Tables::rounded(fmaxf(tables.value2[i], 0.0f), kCrumbUnit) << 8 * i;
      negative_crumbs |= Tables::rounded(fmaxf(-tables.value2[i], 0.0f), kCrumbUnit) << 8 * i;
    }
  }
  // Four codes in the low half of `codes` (see Tables::positives).
  __device__ Quad nibbles(uint32_t codes) const {
    return {byte_perm(positive[0], positive[1], codes ^ 0x8888u), byte_perm(negative[0], negative[1], codes)};
  }
  // Four codes in the low byte.
  __device__ Quad crumbs(uint32_t codes) const {
    const uint32_t halves = (codes & 0x0fu) | (codes & 0xf0u) << 4;
    const uint32_t spread = (halves & 0x0303u) | (halves & 0x0c0cu) << 2;
    return {byte_perm(positive_crumbs, positive_crumbs, spread),
            byte_perm(negative_crumbs, negative_crumbs, spread)};
  }
};

// What one block expands a step's codes with.
struct Expander {
  QuadTables tables;
  const uint16_t* wide_table;  // bf16 of the 8-bit codes
  int page_tokens;

  static __device__ uint4 four(uint2 low, uint2 high) { return {low.x, low.y, high.x, high.y}; }
  static __device__ CodeForm form_of(const FastSide& side, int group) {
    return group < side.num_groups ? side.forms[group] : CodeForm::kNone;
  }
  static __device__ const uint32_t* words_of(const FastSide& side, const std::byte* stage, int group) {
    return reinterpret_cast<const uint32_t*>(stage + side.groups[group]);
  }

  // Features 8 octet .. + 7 of a token, as biased bytes.
  __device__ uint2 key_bytes(const FastSide& side, const std::byte* stage, int octet, int token) const {
    const int group = octet / 2, half = octet % 2;
    const CodeForm form = form_of(side, group);
    if (form == CodeForm::kNibbles) {
      const uint32_t word = words_of(side, stage, group)[half * page_tokens + token];
      return {tables.nibbles(word & 0xffffu).biased(), tables.nibbles(word >> 16).biased()};
    }
    if (form == CodeForm::kCrumbs) {
      const uint32_t codes = words_of(side, stage, group)[token] >> 16 * half;
      return {tables.crumbs(codes & 0xffu).biased(), tables.crumbs(codes >> 8 & 0xffu).biased()};
    }
    return {0x80808080u, 0x80808080u};
  }

  // Eight codes as bf16. `load(i)`: word i of those that hold them; `half`: which 16 bits of it, for crumbs.
  template <class Load>
  __device__ uint4 expand(CodeForm form, int half, const Load& load) const {
    switch (form) {
      case CodeForm::kNibbles: {
        const uint32_t word = load(0);
        return four(tables.nibbles(word & 0xffffu).pairs(), tables.nibbles(word >> 16).pairs());
      }
      case CodeForm::kCrumbs: {
        const uint32_t codes = load(0) >> 16 * half;
        return four(tables.crumbs(codes & 0xffu).pairs(), tables.crumbs(codes >> 8 & 0xffu).pairs());
      }
      case CodeForm::kBytes: {
        const uint32_t low = load(0), high = load(1);
        return {wide_pair(wide_table, low, 0), wide_pair(wide_table, low, 2), wide_pair(wide_table, high, 0),
                wide_pair(wide_table, high, 2)};
      }
      case CodeForm::kFull:
        return {load(0), load(1), load(2), load(3)};
      case CodeForm::kNone:
        break;
    }
    return {0, 0, 0, 0};
  }

  // Words that eight codes take, and where they lie: eight features of a token, eight tokens of a feature.
  __device__ uint4 key_pairs(const FastSide& side, const std::byte* stage, int octet, int token) const {
    const int group = octet / 2, half = octet % 2;
    const CodeForm form = form_of(side, group);
    const uint32_t* words = words_of(side, stage, group < side.num_groups ? group : 0);
    const int first = form == CodeForm::kCrumbs ? 0 : half * words_per_octet(form);
    return expand(form, half, [&](int i) { return words[(first + i) * page_tokens + token]; });
  }
  __device__ uint4 value_pairs(const FastSide& side, const std::byte* stage, int feature, int octet) const {
    const int group = feature / kGroupFeatures;
    const CodeForm form = form_of(side, group);
    const uint32_t* words = words_of(side, stage, group < side.num_groups ? group : 0);
    const int first = form == CodeForm::kCrumbs ? octet / 2 : octet * words_per_octet(form);
    return expand(form, octet % 2,
                  [&](int i) { return words[(first + i) * kGroupFeatures + feature % kGroupFeatures]; });
  }
  static __device__ int words_per_octet(CodeForm form) {
    return form == CodeForm::kFull ? 4 : form == CodeForm::kBytes ? 2 : 1;
  }
};

// One tile in shared memory.
template <bool kBytes, int kGroups>
struct KeyValueTile {
  static constexpr int kKeyParts = kBytes ? kGroups / 4 : kGroups / 2;  // of 64 or 32 features
  static constexpr int kValueTiles = 2 * kGroups;                       // of 8 features
  static constexpr int kBlocks = kPrefillTile / 32;
  // Keys have room as bf16: exact rows are.
  static constexpr int kKeyChunks = kBlocks * 4 * (kGroups / 2) * kWarpSize;
  static constexpr int kValueChunks = kBlocks * kValueTiles * kWarpSize;

  uint4 keys[kKeyChunks];
  uint4 values[kValueChunks];
  float key_norms[kPrefillTile], value_norms[kPrefillTile];

  // Where the chunk of a token of the tile begins, in parts.
  static __device__ int key_chunk(int token, int parts, int part, int quarter) {
    const int block = token / 32, j = token % 8 / 2, n = token % 32 / 8 * 2 + token % 2;
    return ((block * 4 + j) * parts + part) * kWarpSize + 4 * n + quarter;
  }
  static __device__ int value_chunk(int block, int feature, int quarter) {
    return (block * kValueTiles + feature / 8) * kWarpSize + feature % 8 * 4 + quarter;
  }

  // Tokens [first, first + count) of a staged page; all threads call it.
  __device__ void expand(const Expander& expander, const FastPlan& plan, const std::byte* stage, int first,
                         int count) {
    const int quarter = threadIdx.x % 4, begin = threadIdx.x / 4, step = blockDim.x / 4;
    for (int i = begin; i < count * kKeyParts; i += step) {
      const int token = i % count, part = i / count;
      uint4 chunk;
      if (kBytes) {
        chunk = Expander::four(expander.key_bytes(plan.key, stage, 8 * part + quarter, first + token),
                               expander.key_bytes(plan.key, stage, 8 * part + 4 + quarter, first + token));
      } else {
        chunk = expander.key_pairs(plan.key, stage, 4 * part + quarter, first + token);
      }
      keys[key_chunk(token, kKeyParts, part, quarter)] = chunk;
    }
    for (int i = begin; i < count / 32 * 8 * kValueTiles; i += step) {
      const int feature = i % (8 * kValueTiles), block = i / (8 * kValueTiles);
      values[value_chunk(block, feature, quarter)] =
          expander.value_pairs(plan.value, stage, feature, first / 8 + 4 * block + quarter);
    }
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      key_norms[i] = norm_at(plan.key, stage, first + i);
      value_norms[i] = norm_at(plan.value, stage, first + i);
    }
  }
  static __device__ float norm_at(const FastSide& side, const std::byte* stage, int token) {
    return side.has_norm ? from_bf16(reinterpret_cast<const uint16_t*>(stage + side.norms)[token]) : 1.0f;
  }

  // Exact rows: read(side, token, feature), of tokens [0, count); zeros behind. All threads call it.
  template <class Read>
  __device__ void fill_exact(int count, int dim, const Read& read) {
    const int quarter = threadIdx.x % 4, begin = threadIdx.x / 4, step = blockDim.x / 4;
    const auto pair = [&](Side side, int token, int feature, int next_token, int next_feature) {
      const auto one = [&](int t, int f) { return t < count && f < dim ? read(side, t, f) : 0.0f; };
      return pack_bf16(one(token, feature), one(next_token, next_feature));
    };
    for (int i = begin; i < kPrefillTile * (kGroups / 2); i += step) {
      const int token = i % kPrefillTile, part = i / kPrefillTile;
      uint32_t words[4];
      for (int w = 0; w < 4; ++w) {
        const int feature = 8 * (4 * part + quarter) + 2 * w;
        words[w] = pair(Side::kKey, token, feature, token, feature + 1);
      }
      keys[key_chunk(token, kGroups / 2, part, quarter)] = {words[0], words[1], words[2], words[3]};
    }
    for (int i = begin; i < kBlocks * 8 * kValueTiles; i += step) {
      const int feature = i % (8 * kValueTiles), block = i / (8 * kValueTiles);
      uint32_t words[4];
      for (int w = 0; w < 4; ++w) {
        const int token = 32 * block + 8 * quarter + 2 * w;
        words[w] = pair(Side::kValue, token, feature, token + 1, feature);
      }
      values[value_chunk(block, feature, quarter)] = {words[0], words[1], words[2], words[3]};
    }
    for (int i = threadIdx.x; i < kPrefillTile; i += blockDim.x) key_norms[i] = value_norms[i] = 1;
  }
};

}  // namespace lowkey::kernels::cuda
