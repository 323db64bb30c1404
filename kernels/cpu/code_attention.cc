#include "kernels/cpu/code_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/scratch.h"
#include "kernels/page/embedded_quantizer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/code_attention.cc"
#define HWY_WANT_AVX3_DL 1
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd_dot-inl.h"
#include "kernels/cpu/simd_math-inl.h"

#ifndef LOWKEY_CODE_ATTENTION_ONCE_
#define LOWKEY_CODE_ATTENTION_ONCE_
namespace lowkey::kernels::simd {

// Values of codes as the kernels multiply them, repeated as simd_dot-inl.h says.
struct CodeTables {
  alignas(64) uint8_t key_nibbles[64], value_nibbles[64];
  alignas(64) uint8_t key_crumbs[192], value_crumbs[192];
  alignas(64) int16_t base[32], step[32];
  alignas(16) uint8_t nibble_order[16], crumb_order[16];      // of bytes
  alignas(16) uint8_t byte_order[16], nibble_pair_order[16];  // of the bytes of 8 words
};

const CodeTables& code_tables();

// Many rows share one expansion of a page into bytes; for fewer it stays in registers.
inline constexpr int kFusedRows = 8;
inline constexpr int kMaxFused = 4;  // rows whose sums fit the registers

// Rounded weights of one row and batch, in 32-bit words, in the orders that forms ask for.
struct WeightRow {
  explicit WeightRow(int tokens)
      : crumbs(tokens / 4), bytes(tokens / 2), pairs(tokens), size(3 * tokens / 2) {}
  static constexpr int nibbles = 0;
  int crumbs, bytes, pairs, size;
  int at(CodeForm form) const {
    switch (form) {
      case CodeForm::kNibbles:
        return nibbles;
      case CodeForm::kCrumbs:
      case CodeForm::kCrumbPair:
        return crumbs;
      case CodeForm::kBytes:
        return bytes;
      default:
        return pairs;
    }
  }
};

}  // namespace lowkey::kernels::simd
#endif  // LOWKEY_CODE_ATTENTION_ONCE_

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;

#define LOWKEY_INLINE_LAMBDA __attribute__((always_inline))

struct Tables {
  Tables(const uint8_t* nibble, const uint8_t* crumb)
      : nibbles(nibble), crumbs(crumb), base(code_tables().base), step(code_tables().step) {}
  NibbleTable nibbles;
  CrumbTable crumbs;
  WordTable base, step;
};

// 8 pairs of bits in the low half of a word, spread to its 8 nibbles.
HWY_INLINE VW spread(VW x) {
  x = hn::And(hn::Or(x, hn::ShiftLeft<8>(x)), hn::Set(DW(), 0x00ff00ffu));
  x = hn::And(hn::Or(x, hn::ShiftLeft<4>(x)), hn::Set(DW(), 0x0f0f0f0fu));
  return hn::And(hn::Or(x, hn::ShiftLeft<2>(x)), hn::Set(DW(), 0x33333333u));
}

// Words of two 2-bit planes -> word `kHalf` of the 4-bit plane they make.
template <int kHalf>
HWY_INLINE VW nibbles_of(VW high, VW low) {
  const VW part = hn::Set(DW(), 0xffffu);
  high = kHalf == 0 ? hn::And(high, part) : hn::ShiftRight<16>(high);
  low = kHalf == 0 ? hn::And(low, part) : hn::ShiftRight<16>(low);
  return hn::Or(hn::ShiftLeft<2>(spread(high)), spread(low));
}

// base[hi] + step[hi] lo, of 16-bit words with the 4 high bits at kHigh and the 4 low ones at kLow.
template <int kHigh, int kLow>
HWY_INLINE VW wide_values(const Tables& tables, VW high, VW low) {
  return multiply_add_words(tables.step.get<kHigh>(high), nibble_words<kLow>(low),
                            tables.base.get<kHigh>(high));
}

template <class Wide>
HWY_INLINE void expand_nibble_pair(const Tables& tables, VW high, VW low, int word, int b, Wide wide) {
  wide(4 * word, b, wide_values<0, 0>(tables, high, low));
  wide(4 * word + 1, b, wide_values<4, 4>(tables, high, low));
  wide(4 * word + 2, b, wide_values<8, 8>(tables, high, low));
  wide(4 * word + 3, b, wide_values<12, 12>(tables, high, low));
}

// Hands out one group's values: load(plane, word, b) gives word `word` (along the packed extent) of plane
// `plane` for kBlocks registers of the other extent; narrow(quad, b, bytes) and wide(pair, b, words) take
// them in the order of element_order().
template <int kBlocks, class Load, class Narrow, class Wide>
HWY_INLINE void expand(CodeForm form, int extent, const Tables& tables, Load load, Narrow narrow, Wide wide) {
  VW x[kBlocks], y[kBlocks], z;
  switch (form) {
    case CodeForm::kNibbles:
      for (int w = 0; w < (extent + 7) / 8; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) x[b] = load(0, w, b);
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(2 * w, b, tables.nibbles.low(x[b]));
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(2 * w + 1, b, tables.nibbles.high(x[b]));
      }
      return;
    case CodeForm::kCrumbs:
      for (int w = 0; w < (extent + 15) / 16; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) x[b] = load(0, w, b);
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(4 * w, b, tables.crumbs.template get<0>(x[b]));
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(4 * w + 1, b, tables.crumbs.template get<1>(x[b]));
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(4 * w + 2, b, tables.crumbs.template get<2>(x[b]));
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(4 * w + 3, b, tables.crumbs.template get<3>(x[b]));
      }
      return;
    case CodeForm::kCrumbPair:
      for (int w = 0; w < (extent + 15) / 16; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {  // elements 0 and 2, then 1 and 3 of every byte, as nibbles
          const VW high = load(0, w, b), low = load(1, w, b);
          x[b] = select_bits(0xccccccccu, hn::ShiftLeft<2>(high), low);
          y[b] = select_bits(0xccccccccu, high, hn::ShiftRight<2>(low));
        }
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(4 * w, b, tables.nibbles.low(x[b]));
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(4 * w + 1, b, tables.nibbles.low(y[b]));
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(4 * w + 2, b, tables.nibbles.high(x[b]));
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(4 * w + 3, b, tables.nibbles.high(y[b]));
      }
      return;
    case CodeForm::kBytes:
      for (int w = 0; w < (extent + 3) / 4; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {
          x[b] = load(0, w, b);
          wide(2 * w, b, wide_values<4, 0>(tables, x[b], x[b]));
          wide(2 * w + 1, b, wide_values<12, 8>(tables, x[b], x[b]));
        }
      }
      return;
    case CodeForm::kNibblePair:
      for (int w = 0; w < (extent + 7) / 8; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b)
          expand_nibble_pair(tables, load(0, w, b), load(1, w, b), w, b, wide);
      }
      return;
    case CodeForm::kCrumbsNibble:
    case CodeForm::kNibbleCrumbs: {
      const bool high_crumbs = form == CodeForm::kCrumbsNibble;
      const int words = (extent + 7) / 8, crumbs = high_crumbs ? 0 : 1, nibble = high_crumbs ? 2 : 0;
      for (int w = 0; w < words; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {
          x[b] = load(crumbs, w / 2, b), y[b] = load(crumbs + 1, w / 2, b), z = load(nibble, w, b);
          const VW joined = w % 2 == 0 ? nibbles_of<0>(x[b], y[b]) : nibbles_of<1>(x[b], y[b]);
          expand_nibble_pair(tables, high_crumbs ? joined : z, high_crumbs ? z : joined, w, b, wide);
        }
      }
      return;
    }
  }
}

// One page's K or V of one stored vector.
struct PageCodes {
  const CodeSide& side;
  std::byte* const* slabs;
  std::byte* const* next;  // slabs of the page to prefetch, or null
  int tokens;              // of a page

  HWY_INLINE const uint32_t* words(const CodeGroup& group, int plane) const {
    return reinterpret_cast<const uint32_t*>(slabs[group.planes[plane].slab] + group.planes[plane].offset);
  }
  HWY_INLINE const uint16_t* norms(std::byte* const* of) const {
    return reinterpret_cast<const uint16_t*>(of[0] + side.norms_offset);
  }
  // Between groups, never in one burst, which would fill the line buffers and wait.
  HWY_INLINE void prefetch(const CodeGroup& group) const {
    if (next == nullptr) return;
    for (int i = 0; i < group.num_planes; ++i) {
      const CodeGroup::Source& plane = group.planes[i];
      const std::byte* begin = next[plane.slab] + plane.offset;
      for (uint32_t at = 0; at < plane.bytes; at += 64) __builtin_prefetch(begin + at, 0, 3);
    }
  }
  HWY_INLINE void prefetch_norms() const {
    if (next == nullptr || !side.has_norm) return;
    for (int at = 0; at < tokens; at += 32) __builtin_prefetch(norms(next) + at, 0, 3);
  }
};

// bf16 norms of `tokens` [t, t + lanes).
HWY_INLINE VF load_norms(const uint16_t* norms, int t) {
  const hn::Rebind<uint16_t, DF> d16;
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DW(), hn::LoadU(d16, norms + t))));
}

// Scores of kRows rows from `row` on with kBlocks registers of tokens from `t` on.
template <int kRows, int kBlocks, bool kStaged>
HWY_INLINE void score_tokens(const PageCodes& page, const uint32_t* staged, const Tables& tables,
                             const CodeQueries& queries, int row, int t, float* scores, size_t score_stride) {
  const DF d;
  const int lanes = static_cast<int>(hn::Lanes(DW()));
  const bool wide_too = page.side.wide;
  VI narrow[kBlocks][kRows], wide[kBlocks][kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) {
      narrow[b][r] = hn::Set(DI(), queries.bias[row + r]);
      wide[b][r] = hn::Zero(DI());
    }
  }
  const uint32_t* query = queries.words.data() + static_cast<size_t>(row) * queries.stride;
  const size_t stride = queries.stride;
  for (const CodeGroup& group : page.side.groups) {
    const uint32_t* q = query + group.query_word;
    const auto add_narrow = [&](int quad, int b, VW bytes) LOWKEY_INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        narrow[b][r] = dot4(narrow[b][r], bytes, hn::Set(DW(), q[r * stride + quad]));
    };
    const auto add_wide = [&](int pair, int b, VW words) LOWKEY_INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        wide[b][r] = dot2(wide[b][r], words, hn::Set(DW(), q[r * stride + pair]));
    };
    if constexpr (kStaged) {
      const uint32_t* bytes = staged + static_cast<size_t>(group.query_word) * page.tokens + t;
      const int words = is_wide(group.form) ? 8 : 4;
      for (int i = 0; i < words; ++i, bytes += page.tokens) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {
          const VW x = hn::LoadU(DW(), bytes + b * lanes);
          if (words == 4) {
            add_narrow(i, b, x);
          } else {
            add_wide(i, b, x);
          }
        }
      }
    } else {
      page.prefetch(group);
      const uint32_t* planes[kMaxLevels] = {page.words(group, 0), page.words(group, 1), page.words(group, 2)};
      const auto load = [&](int plane, int word, int b) LOWKEY_INLINE_LAMBDA {
        return hn::LoadU(DW(), planes[plane] + static_cast<size_t>(word) * page.tokens + t + b * lanes);
      };
      expand<kBlocks>(group.form, group.features, tables, load, add_narrow, add_wide);
    }
  }
  const uint16_t* norms = page.norms(page.slabs);
#pragma GCC unroll 2
  for (int b = 0; b < kBlocks; ++b) {
    const int at = t + b * lanes;
    const VF norm = page.side.has_norm ? load_norms(norms, at) : hn::Set(d, 1.0f);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      VF x = hn::Mul(hn::ConvertTo(d, narrow[b][r]), hn::Set(d, queries.narrow[row + r]));
      if (wide_too) x = hn::MulAdd(hn::ConvertTo(d, wide[b][r]), hn::Set(d, queries.wide[row + r]), x);
      hn::StoreU(hn::Mul(x, norm), d, scores + r * score_stride + at);
    }
  }
}

template <int kRows, bool kStaged>
void score_rows(const PageCodes& page, const uint32_t* staged, const CodeQueries& queries, int row,
                float* scores, size_t score_stride) {
  const Tables tables(code_tables().key_nibbles, code_tables().key_crumbs);
  const int lanes = static_cast<int>(hn::Lanes(DW()));
  int t = 0;
  for (; t + 2 * lanes <= page.tokens; t += 2 * lanes) {
    score_tokens<kRows, 2, kStaged>(page, staged, tables, queries, row, t, scores, score_stride);
  }
  for (; t < page.tokens; t += lanes) {
    score_tokens<kRows, 1, kStaged>(page, staged, tables, queries, row, t, scores, score_stride);
  }
}

// The page's keys as [word of a query][token].
void stage_keys(const PageCodes& page, uint32_t* staged) {
  const Tables tables(code_tables().key_nibbles, code_tables().key_crumbs);
  for (const CodeGroup& group : page.side.groups) {
    page.prefetch(group);
    const uint32_t* planes[kMaxLevels] = {page.words(group, 0), page.words(group, 1), page.words(group, 2)};
    uint32_t* out = staged + static_cast<size_t>(group.query_word) * page.tokens;
    for (int t = 0; t < page.tokens; t += static_cast<int>(hn::Lanes(DW()))) {
      const auto load = [&](int plane, int word, int) LOWKEY_INLINE_LAMBDA {
        return hn::LoadU(DW(), planes[plane] + static_cast<size_t>(word) * page.tokens + t);
      };
      const auto store = [&](int i, int, VW x) LOWKEY_INLINE_LAMBDA {
        hn::StoreU(x, DW(), out + static_cast<size_t>(i) * page.tokens + t);
      };
      expand<1>(group.form, group.features, tables, load, store, store);
    }
  }
}

// The page's values as [group][quad or pair of tokens][feature].
void stage_values(const PageCodes& page, uint32_t* staged) {
  const Tables tables(code_tables().value_nibbles, code_tables().value_crumbs);
  for (const CodeGroup& group : page.side.groups) {
    page.prefetch(group);
    const uint32_t* planes[kMaxLevels] = {page.words(group, 0), page.words(group, 1), page.words(group, 2)};
    for (int f = 0; f < group.features; f += static_cast<int>(hn::Lanes(DW()))) {
      const size_t count = group.features - f;
      const auto load = [&](int plane, int word, int) LOWKEY_INLINE_LAMBDA {
        return load_first(DW(), planes[plane] + static_cast<size_t>(word) * group.features + f, count);
      };
      const auto store = [&](int i, int, VW x) LOWKEY_INLINE_LAMBDA {
        hn::StoreU(x, DW(), staged + static_cast<size_t>(i) * kGroupFeatures + f);
      };
      expand<1>(group.form, page.tokens, tables, load, store, store);
    }
    staged += static_cast<size_t>(page.tokens) / (is_wide(group.form) ? 2 : 4) * kGroupFeatures;
  }
}

// acc += weights times values, for kRows rows from `row` on. weights: [row][order][words of the batch].
struct AddRows {
  const uint32_t* weights;
  size_t weight_stride;
  WeightRow orders;
  int page;              // in the batch
  const float* factors;  // [row][page][narrow, wide]
  size_t factor_stride;
};

template <int kRows, bool kStaged>
void add_rows(const PageCodes& page, const uint32_t* staged, const AddRows& add, float* acc,
              size_t acc_stride) {
  const DF d;
  const Tables tables(code_tables().value_nibbles, code_tables().value_crumbs);
  const int lanes = static_cast<int>(hn::Lanes(DW()));
  for (const CodeGroup& group : page.side.groups) {
    if (!kStaged) page.prefetch(group);
    const bool is_wide_group = is_wide(group.form);
    const int words = page.tokens / (is_wide_group ? 2 : 4);
    const uint32_t* w = add.weights + add.orders.at(group.form) + add.page * words;
    const float* factors = add.factors + 2 * add.page + is_wide_group;
    const size_t w_stride = add.weight_stride;
    const uint32_t* planes[kMaxLevels] = {page.words(group, 0), page.words(group, 1), page.words(group, 2)};
    for (int f = 0; f < group.features; f += lanes) {
      const size_t count = group.features - f;
      VI sums[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r] = hn::Zero(DI());
      const auto add_narrow = [&](int quad, int, VW bytes) LOWKEY_INLINE_LAMBDA {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r] = dot4(sums[r], hn::Set(DW(), w[r * w_stride + quad]), bytes);
      };
      const auto add_wide = [&](int pair, int, VW x) LOWKEY_INLINE_LAMBDA {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r] = dot2(sums[r], hn::Set(DW(), w[r * w_stride + pair]), x);
      };
      if constexpr (kStaged) {
        const uint32_t* values = staged + f;
        if (is_wide_group) {
          for (int i = 0; i < words; ++i, values += kGroupFeatures) add_wide(i, 0, hn::LoadU(DW(), values));
        } else {
          for (int i = 0; i < words; ++i, values += kGroupFeatures) add_narrow(i, 0, hn::LoadU(DW(), values));
        }
      } else {
        const auto load = [&](int plane, int word, int) LOWKEY_INLINE_LAMBDA {
          return load_first(DW(), planes[plane] + static_cast<size_t>(word) * group.features + f, count);
        };
        expand<1>(group.form, page.tokens, tables, load, add_narrow, add_wide);
      }
      float* out = acc + group.feature + f;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const VF factor = hn::Set(d, factors[r * add.factor_stride]);
        const VF old = load_first(d, out + r * acc_stride, count);
        store_first(hn::MulAdd(hn::ConvertTo(d, sums[r]), factor, old), d, out + r * acc_stride, count);
      }
    }
    if (kStaged) staged += static_cast<size_t>(words) * kGroupFeatures;
  }
}

// 16 values times `scale`, rounded to nearest (even), as bytes in `order`; their sum, spread over the lanes.
template <class Byte>
HWY_INLINE VI pack_bytes(const float* x, float scale, const uint8_t* order, uint32_t* out) {
  const DF d;
  const hn::Rebind<Byte, DF> d8;
  HWY_ALIGN Byte natural[16];
  VI sum = hn::Zero(DI());
  for (size_t i = 0; i < 16; i += hn::Lanes(d)) {
    const VI rounded = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale)));
    sum = hn::Add(sum, rounded);
    hn::StoreU(hn::DemoteTo(d8, rounded), d8, natural + i);
  }
  permute_bytes(natural, order, out);
  return sum;
}

// The same as 16-bit words; `order` is of the bytes of 8 of them.
HWY_INLINE void pack_words(const float* x, float scale, const uint8_t* order, uint32_t* out) {
  const DF d;
  const hn::Rebind<int16_t, DF> d16;
  HWY_ALIGN int16_t natural[16];
  for (size_t i = 0; i < 16; i += hn::Lanes(d)) {
    const VI rounded = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale)));
    hn::StoreU(hn::DemoteTo(d16, rounded), d16, natural + i);
  }
  permute_bytes(natural, order, out);
  permute_bytes(natural + 8, order, out + 4);
}

// What a batch's softmax needs to know.
struct Batch {
  const CodeSide& values;
  std::byte* const* slabs;  // of its first page
  int tokens;               // of a page
  int masked;               // first tokens that are not seen
  unsigned orders;          // bit i: form i occurs
  WeightRow row;
};

// Largest rounded weight of wide values: 32 of them times the largest value stay below 2^31.
HWY_INLINE float wide_weight_limit(int tokens) {
  constexpr int kBudget = std::numeric_limits<int32_t>::max() / kMaxWideValue;
  return static_cast<float>(std::min(std::numeric_limits<int16_t>::max() + 0, kBudget / tokens - 1));
}

HWY_INLINE float exp_one(float x) {
  const hn::CappedTag<float, 1> d1;
  return hn::GetLane(exp_f32(d1, hn::Set(d1, x)));
}

// Weights of one page (already times their norms, largest: `largest`), rounded, in all orders asked for.
HWY_INLINE void round_weights(const Batch& batch, int page, const float* weights, float largest,
                              uint32_t* rounded, float* factors) {
  const CodeTables& tables = code_tables();
  const int tokens = batch.tokens;
  const auto has = [&](CodeForm form) { return (batch.orders >> static_cast<int>(form) & 1) != 0; };
  const float safe = largest > 1e-30f ? largest : 0.0f, inverse = safe > 0.0f ? 1.0f / safe : 0.0f;
  const float limit = wide_weight_limit(tokens);
  factors[0] = safe * (1 / (255 * kNarrowUnit));
  factors[1] = safe / (limit * kWideUnit);
  const bool nibbles = has(CodeForm::kNibbles), crumbs = has(CodeForm::kCrumbs) || has(CodeForm::kCrumbPair);
  const bool bytes = has(CodeForm::kBytes), pairs = batch.orders >> static_cast<int>(CodeForm::kNibblePair);
  for (int t = 0; t < tokens; t += 16) {
    const int narrow_at = (page * tokens + t) / 4, wide_at = (page * tokens + t) / 2;
    if (nibbles)
      pack_bytes<uint8_t>(weights + t, 255 * inverse, tables.nibble_order,
                          rounded + batch.row.nibbles + narrow_at);
    if (crumbs)
      pack_bytes<uint8_t>(weights + t, 255 * inverse, tables.crumb_order,
                          rounded + batch.row.crumbs + narrow_at);
    if (bytes)
      pack_words(weights + t, limit * inverse, tables.byte_order, rounded + batch.row.bytes + wide_at);
    if (pairs)
      pack_words(weights + t, limit * inverse, tables.nibble_pair_order, rounded + batch.row.pairs + wide_at);
  }
}

// One row over `pages` pages of a batch: online softmax (Milakov & Gimelshein 2018), then rounded weights.
void weigh_row(const Batch& batch, int pages, float* scores, float& maximum, float& sum, float* acc, int dim,
               uint32_t* rounded, float* factors) {
  const DF d;
  const int lanes = static_cast<int>(hn::Lanes(d)), n = pages * batch.tokens;
  const VF lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  std::fill_n(scores, std::min(batch.masked, n), -std::numeric_limits<float>::infinity());
  VF maxima = lowest;
  for (int i = 0; i < n; i += lanes) maxima = hn::Max(maxima, hn::LoadU(d, scores + i));
  const float batch_maximum = hn::GetLane(hn::MaxOfLanes(d, maxima));
  if (batch_maximum > maximum) {
    const float shrink = exp_one(maximum - batch_maximum);
    maximum = batch_maximum;
    sum *= shrink;
    for (int f = 0; f < dim; f += lanes) {
      store_first(hn::Mul(load_first(d, acc + f, dim - f), hn::Set(d, shrink)), d, acc + f, dim - f);
    }
  }
  // Nothing seen at all: weights e^(-inf - lowest finite) = 0.
  const VF shift = hn::Set(d, std::max(maximum, std::numeric_limits<float>::lowest()));
  VF sums = hn::Zero(d);
  for (int page = 0; page < pages; ++page) {
    const auto* norms = reinterpret_cast<const uint16_t*>(batch.slabs[static_cast<size_t>(page) * kMaxSlabs] +
                                                          batch.values.norms_offset);
    float* weights = scores + static_cast<size_t>(page) * batch.tokens;
    VF largest = hn::Zero(d);
    for (int t = 0; t < batch.tokens; t += lanes) {
      VF weight = exp_f32(d, hn::Sub(hn::LoadU(d, weights + t), shift));
      sums = hn::Add(sums, weight);
      if (batch.values.has_norm) weight = hn::Mul(weight, load_norms(norms, t));
      hn::StoreU(weight, d, weights + t);
      largest = hn::Max(largest, weight);
    }
    round_weights(batch, page, weights, hn::GetLane(hn::MaxOfLanes(d, largest)), rounded, factors + 2 * page);
  }
  sum += hn::GetLane(hn::SumOfLanes(d, sums));
}

template <bool kStaged>
void score_page(const PageCodes& page, const uint32_t* staged, const CodeQueries& queries, int first,
                int rows, float* scores, size_t stride) {
  PageCodes again{page.side, page.slabs, nullptr, page.tokens};
  for (int row = first; row < rows; row += kMaxFused) {
    const PageCodes& which = row == first ? page : again;
    float* out = scores + row * stride;
    switch (std::min(kMaxFused, rows - row)) {
      case 1:
        score_rows<1, kStaged>(which, staged, queries, row, out, stride);
        break;
      case 2:
        score_rows<2, kStaged>(which, staged, queries, row, out, stride);
        break;
      case 3:
        score_rows<3, kStaged>(which, staged, queries, row, out, stride);
        break;
      default:
        score_rows<4, kStaged>(which, staged, queries, row, out, stride);
    }
  }
}

template <bool kStaged>
void add_page(const PageCodes& page, const uint32_t* staged, AddRows add, int first, int rows, float* acc,
              size_t stride) {
  PageCodes again{page.side, page.slabs, nullptr, page.tokens};
  const AddRows base = add;
  for (int row = first; row < rows; row += kMaxFused) {
    const PageCodes& which = row == first ? page : again;
    add.weights = base.weights + row * base.weight_stride;
    add.factors = base.factors + row * base.factor_stride;
    float* out = acc + row * stride;
    switch (std::min(kMaxFused, rows - row)) {
      case 1:
        add_rows<1, kStaged>(which, staged, add, out, stride);
        break;
      case 2:
        add_rows<2, kStaged>(which, staged, add, out, stride);
        break;
      case 3:
        add_rows<3, kStaged>(which, staged, add, out, stride);
        break;
      default:
        add_rows<4, kStaged>(which, staged, add, out, stride);
    }
  }
}

void see_codes(const CodePlan& plan, const PageRun& run, const CodeQueries& queries,
               const AttentionState& state, CodeScratch& scratch) {
  const int tokens = plan.page_tokens, rows = queries.rows;
  const int batch_pages = std::max(1, kCodeBatchTokens / tokens), batch_tokens = batch_pages * tokens;
  const WeightRow row_words(batch_tokens);
  unsigned orders = 0;
  for (const CodeGroup& group : plan.value.groups) orders |= 1u << static_cast<int>(group.form);
  float* scores = scratch.scores.data();
  uint32_t *weights = scratch.weights.data(), *staged = scratch.staged.data();
  float* factors = scratch.factors.data();
  for (int page = 0, end; page < run.num_pages; page = end) {
    end = std::min(run.num_pages, page + batch_pages);
    const auto codes = [&](const CodeSide& side, int p) {
      std::byte* const* slabs = run.slabs + static_cast<size_t>(p) * kMaxSlabs;
      const bool more = p + batch_pages < run.num_pages + run.pages_after;
      return PageCodes{side, slabs, more ? slabs + static_cast<size_t>(batch_pages) * kMaxSlabs : nullptr,
                       tokens};
    };
    for (int p = page; p < end; ++p) {
      const PageCodes keys = codes(plan.key, p);
      const int first = run.first_query[p];
      float* out = scores + (p - page) * tokens;
      keys.prefetch_norms();
      if (rows - first > kFusedRows) {
        stage_keys(keys, staged);
        score_page<true>(keys, staged, queries, first, rows, out, batch_tokens);
      } else {
        score_page<false>(keys, staged, queries, first, rows, out, batch_tokens);
      }
    }
    const Batch batch{plan.value, run.slabs + static_cast<size_t>(page) * kMaxSlabs,
                      tokens,     page == 0 ? run.masked_tokens : 0,
                      orders,     row_words};
    for (int row = run.first_query[page]; row < rows; ++row) {
      int visible = 1;
      while (page + visible < end && run.first_query[page + visible] <= row) ++visible;
      weigh_row(batch, visible, scores + static_cast<size_t>(row) * batch_tokens, state.maximum[row],
                state.sum[row], state.acc + static_cast<size_t>(row) * state.stride, plan.value.dim,
                weights + static_cast<size_t>(row) * row_words.size,
                factors + static_cast<size_t>(row) * 2 * batch_pages);
    }
    for (int p = page; p < end; ++p) {
      const PageCodes values = codes(plan.value, p);
      const int first = run.first_query[p];
      const AddRows add{weights, static_cast<size_t>(row_words.size), row_words, p - page,
                        factors, static_cast<size_t>(2 * batch_pages)};
      values.prefetch_norms();
      if (rows - first > kFusedRows) {
        stage_values(values, staged);
        add_page<true>(values, staged, add, first, rows, state.acc, state.stride);
      } else {
        add_page<false>(values, staged, add, first, rows, state.acc, state.stride);
      }
    }
  }
}

// One row: see CodeQueries. Rounded wide features add up to no more than keeps their sums below 2^31.
void round_query(const CodeSide& side, const float* features, uint32_t* words, int32_t& bias, float& narrow,
                 float& wide) {
  constexpr float kWideBudget = std::numeric_limits<int32_t>::max() / kMaxWideValue - 1024;
  float largest = 0, largest_wide = 0, sum_wide = 0;
  for (const CodeGroup& group : side.groups) {
    for (int f = group.feature; f < group.feature + group.features; ++f) {
      const float magnitude = std::fabs(features[f]);
      if (is_wide(group.form)) {
        largest_wide = std::max(largest_wide, magnitude);
        sum_wide += magnitude;
      } else {
        largest = std::max(largest, magnitude);
      }
    }
  }
  const float step = largest / 127, wide_step = std::max(largest_wide / 32767, sum_wide / kWideBudget);
  const float inverse = step > 1e-30f ? 1 / step : 0, wide_inverse = wide_step > 1e-30f ? 1 / wide_step : 0;
  narrow = step / kNarrowUnit;
  wide = wide_step / kWideUnit;
  const CodeTables& tables = code_tables();
  VI sums = hn::Zero(DI());
  for (const CodeGroup& group : side.groups) {
    HWY_ALIGN float x[16] = {};
    std::copy_n(features + group.feature, group.features, x);
    uint32_t* out = words + group.query_word;
    if (group.form == CodeForm::kNibbles) {
      sums = hn::Add(sums, pack_bytes<int8_t>(x, inverse, tables.nibble_order, out));
    } else if (!is_wide(group.form)) {
      sums = hn::Add(sums, pack_bytes<int8_t>(x, inverse, tables.crumb_order, out));
    } else {
      pack_words(x, wide_inverse,
                 group.form == CodeForm::kBytes ? tables.byte_order : tables.nibble_pair_order, out);
    }
  }
  bias = -128 * hn::GetLane(hn::SumOfLanes(DI(), sums));
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(see_codes);
HWY_EXPORT(round_query);

namespace {

CodeTables make_code_tables() {
  const EmbeddedTables& values = embedded_tables();
  CodeTables tables;
  const auto narrow = [](float value) { return static_cast<int>(std::lrint(value * kNarrowUnit)); };
  for (int i = 0; i < 64; ++i) {
    const int nibble = narrow(values.value4[i & 15]);
    tables.key_nibbles[i] = static_cast<uint8_t>(nibble + 128);
    tables.value_nibbles[i] = static_cast<uint8_t>(nibble);
    for (int part = 0; part < 3; ++part) {
      const int crumb = narrow(values.value2[(i >> 2 * part) & 3]);
      tables.key_crumbs[64 * part + i] = static_cast<uint8_t>(crumb + 128);
      tables.value_crumbs[64 * part + i] = static_cast<uint8_t>(crumb);
    }
  }
  for (int i = 0; i < 32; ++i) {
    // The rounded step errs least in the middle of the cell: 7.5 steps from its ends.
    const float step = values.step[i & 15], middle = values.base[i & 15] + 7.5f * step;
    tables.step[i] = static_cast<int16_t>(std::lrint(step * kWideUnit));
    tables.base[i] = static_cast<int16_t>(std::lrint(middle * kWideUnit - 7.5f * tables.step[i]));
  }
  const auto bytes = [](CodeForm form, uint8_t* order) {
    std::copy_n(element_order(form).data(), 16, order);
  };
  const auto words = [](CodeForm form, uint8_t* order) {
    for (int i = 0; i < 16; ++i) order[i] = static_cast<uint8_t>(2 * element_order(form)[i / 2] + i % 2);
  };
  bytes(CodeForm::kNibbles, tables.nibble_order);
  bytes(CodeForm::kCrumbs, tables.crumb_order);
  words(CodeForm::kBytes, tables.byte_order);
  words(CodeForm::kNibblePair, tables.nibble_pair_order);
  return tables;
}

}  // namespace

const CodeTables& code_tables() {
  static const CodeTables tables = make_code_tables();
  return tables;
}

void round_queries(const CodePlan& plan, const FeatureQueries& queries, CodeQueries& rounded) {
  const size_t rows = queries.count;
  rounded.rows = queries.count;
  rounded.stride = plan.key.query_words;
  grow(rounded.words, rows * rounded.stride);
  grow(rounded.bias, rows);
  grow(rounded.narrow, rows);
  grow(rounded.wide, rows);
  for (size_t row = 0; row < rows; ++row) {
    HWY_DYNAMIC_DISPATCH(round_query)
    (plan.key, queries.rows + row * queries.stride, rounded.words.data() + row * rounded.stride,
     rounded.bias[row], rounded.narrow[row], rounded.wide[row]);
  }
}

void see_codes(const CodePlan& plan, const PageRun& run, const CodeQueries& queries,
               const AttentionState& state, CodeScratch& scratch) {
  const size_t pages = std::max(1, kCodeBatchTokens / plan.page_tokens), tokens = pages * plan.page_tokens;
  grow(scratch.scores, queries.rows * tokens);
  grow(scratch.weights, queries.rows * static_cast<size_t>(WeightRow(static_cast<int>(tokens)).size));
  grow(scratch.factors, queries.rows * 2 * pages);
  // 16 features of 16 bits a token at most, whole groups.
  const size_t groups = std::max(plan.key.groups.size(), plan.value.groups.size());
  grow(scratch.staged, groups * plan.page_tokens * kGroupFeatures / 2);
  HWY_DYNAMIC_DISPATCH(see_codes)(plan, run, queries, state, scratch);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
