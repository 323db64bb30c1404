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

extern const CodeTables kCodeTables;

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
      : nibbles(nibble), crumbs(crumb), base(kCodeTables.base), step(kCodeTables.step) {}
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
  std::byte* const* next;  // slabs of the page to prefetch; the same as slabs: none
  int tokens;              // of a page

  HWY_INLINE const uint16_t* norms(std::byte* const* of) const {
    return reinterpret_cast<const uint16_t*>(of[0] + side.norms_offset);
  }
  HWY_INLINE void prefetch_norms() const {
    if (next == slabs || !side.has_norm) return;
    for (int at = 0; at < tokens; at += 32) __builtin_prefetch(norms(next) + at, 0, 3);
  }
};

// The planes of a group. With every word that is read the same one of the next page is prefetched: one burst
// would fill the line buffers and wait.
struct PlaneReader {
  HWY_INLINE PlaneReader(const PageCodes& page, const CodeGroup& group) {
#pragma GCC unroll 3
    for (int i = 0; i < kMaxLevels; ++i) {
      const CodeGroup::Source& plane = group.planes[i < group.num_planes ? i : 0];
      words[i] = reinterpret_cast<const uint32_t*>(page.slabs[plane.slab] + plane.offset);
      ahead[i] = reinterpret_cast<const uint32_t*>(page.next[plane.slab] + plane.offset) - words[i];
    }
  }
  HWY_INLINE VW load(int plane, size_t at) const {
    const uint32_t* word = words[plane] + at;
    __builtin_prefetch(word + ahead[plane], 0, 3);
    return hn::LoadU(DW(), word);
  }
  HWY_INLINE VW load_first(int plane, size_t at, size_t count) const {
    const uint32_t* word = words[plane] + at;
    __builtin_prefetch(word + ahead[plane], 0, 3);
    return HWY_NAMESPACE::load_first(DW(), word, count);
  }
  const uint32_t* words[kMaxLevels];
  ptrdiff_t ahead[kMaxLevels];
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
      const int words = (group.features + 15) / 16 * (is_wide(group.form) ? 8 : 4);
      for (int i = 0; i < words; ++i, bytes += page.tokens) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {
          const VW x = hn::LoadU(DW(), bytes + b * lanes);
          if (!is_wide(group.form)) {
            add_narrow(i, b, x);
          } else {
            add_wide(i, b, x);
          }
        }
      }
    } else {
      const PlaneReader reader(page, group);
      const auto load = [&](int plane, int word, int b) LOWKEY_INLINE_LAMBDA {
        return reader.load(plane, static_cast<size_t>(word) * page.tokens + t + b * lanes);
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
  const Tables tables(kCodeTables.key_nibbles, kCodeTables.key_crumbs);
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
  const Tables tables(kCodeTables.key_nibbles, kCodeTables.key_crumbs);
  for (const CodeGroup& group : page.side.groups) {
    const PlaneReader reader(page, group);
    uint32_t* out = staged + static_cast<size_t>(group.query_word) * page.tokens;
    for (int t = 0; t < page.tokens; t += static_cast<int>(hn::Lanes(DW()))) {
      const auto load = [&](int plane, int word, int) LOWKEY_INLINE_LAMBDA {
        return reader.load(plane, static_cast<size_t>(word) * page.tokens + t);
      };
      const auto store = [&](int i, int, VW x) LOWKEY_INLINE_LAMBDA {
        hn::StoreU(x, DW(), out + static_cast<size_t>(i) * page.tokens + t);
      };
      expand<1>(group.form, group.features, tables, load, store, store);
    }
  }
}

// Calls part(f, features of its group, words before its group, count) for every vector of features of a
// value's group.
template <class Part>
HWY_INLINE void for_feature_parts(const CodeGroup& group, int first, const Part& part) {
  for (int f = first; f < group.features; f += static_cast<int>(hn::Lanes(DW()))) {
    const int begin = f / kGroupFeatures * kGroupFeatures;
    part(f, std::min(kGroupFeatures, group.features - begin), f - begin,
         static_cast<size_t>(begin / kGroupFeatures));
  }
}

// The page's values as [part of a vector of features][quad or pair of tokens][lanes].
void stage_values(const PageCodes& page, uint32_t* staged) {
  const Tables tables(kCodeTables.value_nibbles, kCodeTables.value_crumbs);
  const size_t lanes = hn::Lanes(DW());
  for (const CodeGroup& group : page.side.groups) {
    const PlaneReader reader(page, group);
    const size_t words = page.tokens / (is_wide(group.form) ? 2 : 4);
    for_feature_parts(group, 0, [&](int, int features, int within, size_t index) LOWKEY_INLINE_LAMBDA {
      const auto load = [&](int plane, int word, int) LOWKEY_INLINE_LAMBDA {
        const size_t at =
            index * group.planes[plane].bytes / 4 + static_cast<size_t>(word) * features + within;
        return reader.load_first(plane, at, features - within);
      };
      const auto store = [&](int i, int, VW x)
                             LOWKEY_INLINE_LAMBDA { hn::StoreU(x, DW(), staged + i * lanes); };
      expand<1>(group.form, page.tokens, tables, load, store, store);
      staged += words * lanes;
    });
  }
}

// What add_rows() adds up. weights: [row][order][words of the batch].
struct AddRows {
  const uint32_t* weights;
  size_t weight_stride;
  WeightRow orders;
  int page;              // in the batch
  const float* factors;  // [row][page][narrow, wide]
  size_t factor_stride;
};

// Integer sums of kBlocks vectors of features times their factor, onto the accumulators.
template <int kRows, int kBlocks>
HWY_INLINE void add_sums(const VI (&sums)[kBlocks][kRows], const float* factors, size_t factor_stride,
                         float* acc, size_t acc_stride, size_t count) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const VF factor = hn::Set(d, factors[r * factor_stride]);
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) {
      float* out = acc + r * acc_stride + b * lanes;
      const VF old = load_first(d, out, count);
      store_first(hn::MulAdd(hn::ConvertTo(d, sums[b][r]), factor, old), d, out, count);
    }
  }
}

// acc += weights times values, for kRows rows and kBlocks vectors of features that load(plane, word, b)
// reads.
template <int kRows, int kBlocks, class Load>
HWY_INLINE void add_part(CodeForm form, int tokens, const Tables& tables, const uint32_t* w, size_t w_stride,
                         const Load& load, VI (&sums)[kBlocks][kRows]) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) sums[b][r] = hn::Zero(DI());
  }
  const auto add_narrow = [&](int quad, int b, VW bytes) LOWKEY_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      sums[b][r] = dot4(sums[b][r], hn::Set(DW(), w[r * w_stride + quad]), bytes);
  };
  const auto add_wide = [&](int pair, int b, VW x) LOWKEY_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[b][r] = dot2(sums[b][r], hn::Set(DW(), w[r * w_stride + pair]), x);
  };
  expand<kBlocks>(form, tokens, tables, load, add_narrow, add_wide);
}

template <int kRows>
void add_rows(const PageCodes& page, const AddRows& add, float* acc, size_t acc_stride) {
  const Tables tables(kCodeTables.value_nibbles, kCodeTables.value_crumbs);
  const int lanes = static_cast<int>(hn::Lanes(DW()));
  for (const CodeGroup& group : page.side.groups) {
    const PlaneReader reader(page, group);
    const bool wide = is_wide(group.form);
    const uint32_t* w = add.weights + add.orders.at(group.form) + add.page * (page.tokens / (wide ? 2 : 4));
    const float* factors = add.factors + 2 * add.page + wide;
    float* out = acc + group.feature;
    int f = 0;
    if (lanes == kGroupFeatures) {  // two groups at once: they share the weights
      for (; f + 2 * kGroupFeatures <= group.features; f += 2 * kGroupFeatures) {
        const auto load = [&](int plane, int word, int b) LOWKEY_INLINE_LAMBDA {
          const size_t index = static_cast<size_t>(f) / kGroupFeatures + b;
          return reader.load(
              plane, index * group.planes[plane].bytes / 4 + static_cast<size_t>(word) * kGroupFeatures);
        };
        VI sums[2][kRows];
        add_part<kRows, 2>(group.form, page.tokens, tables, w, add.weight_stride, load, sums);
        add_sums<kRows, 2>(sums, factors, add.factor_stride, out + f, acc_stride, kGroupFeatures);
      }
    }
    for_feature_parts(group, f, [&](int at, int features, int within, size_t index) LOWKEY_INLINE_LAMBDA {
      const auto load = [&](int plane, int word, int) LOWKEY_INLINE_LAMBDA {
        const size_t word_at =
            index * group.planes[plane].bytes / 4 + static_cast<size_t>(word) * features + within;
        return reader.load_first(plane, word_at, features - within);
      };
      VI sums[1][kRows];
      add_part<kRows, 1>(group.form, page.tokens, tables, w, add.weight_stride, load, sums);
      add_sums<kRows, 1>(sums, factors, add.factor_stride, out + at, acc_stride, features - within);
    });
  }
}

// The same from staged values.
template <int kRows>
void add_staged_rows(const PageCodes& page, const uint32_t* staged, const AddRows& add, float* acc,
                     size_t acc_stride) {
  const size_t lanes = hn::Lanes(DW());
  for (const CodeGroup& group : page.side.groups) {
    const bool wide = is_wide(group.form);
    const int words = page.tokens / (wide ? 2 : 4);
    const uint32_t* w = add.weights + add.orders.at(group.form) + add.page * words;
    for_feature_parts(group, 0, [&](int at, int features, int within, size_t) LOWKEY_INLINE_LAMBDA {
      VI sums[1][kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[0][r] = hn::Zero(DI());
      for (int i = 0; i < words; ++i, staged += lanes) {
        const VW x = hn::LoadU(DW(), staged);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const VW weight = hn::Set(DW(), w[r * add.weight_stride + i]);
          sums[0][r] = wide ? dot2(sums[0][r], weight, x) : dot4(sums[0][r], weight, x);
        }
      }
      add_sums<kRows, 1>(sums, add.factors + 2 * add.page + wide, add.factor_stride, acc + group.feature + at,
                         acc_stride, features - within);
    });
  }
}

// 16 values times a scale, rounded to nearest (even).
struct Rounded16 {
  HWY_INLINE Rounded16(const float* x, VF scale) {
    for (size_t i = 0; i < 16; i += hn::Lanes(DF()))
      values[i / hn::Lanes(DF())] = hn::NearestInt(hn::Mul(hn::LoadU(DF(), x + i), scale));
  }
  VI values[16 / hn::MaxLanes(DF())];
};

// What a batch's softmax needs to know.
struct Batch {
  const CodeSide& values;
  std::byte* const* slabs;             // of its first page
  int tokens;                          // of a page
  int masked;                          // first tokens that are not seen
  bool nibbles, crumbs, bytes, pairs;  // orders of weights that values ask for
  WeightRow row;
};

// One row over the pages of a batch that it sees.
struct BatchRow {
  float* scores;  // become weights
  float* maximum;
  float* sum;
  float* acc;
  uint32_t* rounded;
  float* factors;
  int pages;
};

// Largest rounded weight of wide values: as many as a page has, times the largest value, stay below 2^31.
HWY_INLINE float wide_weight_limit(int tokens) {
  constexpr int kBudget = std::numeric_limits<int32_t>::max() / kMaxWideValue;
  return static_cast<float>(std::min(std::numeric_limits<int16_t>::max() + 0, kBudget / tokens - 1));
}

HWY_INLINE float exp_one(float x) {
  const hn::CappedTag<float, 1> d1;
  return hn::GetLane(exp_f32(d1, hn::Set(d1, x)));
}

// The row's new maximum; what it has summed up is brought there.
HWY_INLINE void raise_maximum(const Batch& batch, const BatchRow& row, int dim) {
  const DF d;
  const int lanes = static_cast<int>(hn::Lanes(d)), n = row.pages * batch.tokens;
  for (int t = 0; t < std::min(batch.masked, n); ++t) row.scores[t] = -std::numeric_limits<float>::infinity();
  VF maxima = hn::LoadU(d, row.scores);
  for (int i = lanes; i < n; i += lanes) maxima = hn::Max(maxima, hn::LoadU(d, row.scores + i));
  const float maximum = hn::GetLane(hn::MaxOfLanes(d, maxima));
  if (!(maximum > *row.maximum)) return;
  const float shrink = exp_one(*row.maximum - maximum);
  *row.maximum = maximum;
  if (*row.sum == 0.0f) return;  // nothing yet
  *row.sum *= shrink;
  for (int f = 0; f < dim; f += lanes)
    store_first(hn::Mul(load_first(d, row.acc + f, dim - f), hn::Set(d, shrink)), d, row.acc + f, dim - f);
}

// Scores become weights times norms; the largest of each page.
HWY_INLINE void weigh(const Batch& batch, const BatchRow& row, float* largest) {
  const DF d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  // Nothing seen at all: weights e^(-infinity - lowest) = 0.
  const VF shift = hn::Set(d, std::max(*row.maximum, std::numeric_limits<float>::lowest()));
  VF sums = hn::Zero(d);
  for (int page = 0; page < row.pages; ++page) {
    const auto* norms = reinterpret_cast<const uint16_t*>(batch.slabs[static_cast<size_t>(page) * kMaxSlabs] +
                                                          batch.values.norms_offset);
    float* weights = row.scores + static_cast<size_t>(page) * batch.tokens;
    VF most = hn::Zero(d);
    for (int t = 0; t < batch.tokens; t += lanes) {
      VF weight = exp_f32(d, hn::Sub(hn::LoadU(d, weights + t), shift));
      sums = hn::Add(sums, weight);
      if (batch.values.has_norm) weight = hn::Mul(weight, load_norms(norms, t));
      hn::StoreU(weight, d, weights + t);
      most = hn::Max(most, weight);
    }
    largest[page] = hn::GetLane(hn::MaxOfLanes(d, most));
  }
  *row.sum += hn::GetLane(hn::SumOfLanes(d, sums));
}

// Weights of one page, rounded relative to the largest of them, in all orders asked for.
HWY_INLINE void round_weights(const Batch& batch, const BatchRow& row, int page, float largest, float limit) {
  const float safe = largest > 1e-30f ? largest : 0.0f, inverse = safe > 0.0f ? 1.0f / safe : 0.0f;
  row.factors[2 * page] = safe * (1 / (255 * kNarrowUnit));
  row.factors[2 * page + 1] = safe * (1 / kWideUnit) / limit;
  const VF narrow_scale = hn::Set(DF(), 255 * inverse), wide_scale = hn::Set(DF(), limit * inverse);
  for (int t = page * batch.tokens; t < (page + 1) * batch.tokens; t += 16) {
    uint32_t* words = row.rounded + t / 4;
    if (batch.nibbles || batch.crumbs) {
      const Rounded16 rounded(row.scores + t, narrow_scale);
      if (batch.nibbles)
        store_bytes<uint8_t>(rounded.values, kCodeTables.nibble_order, words + batch.row.nibbles);
      if (batch.crumbs)
        store_bytes<uint8_t>(rounded.values, kCodeTables.crumb_order, words + batch.row.crumbs);
    }
    if (batch.bytes || batch.pairs) {
      const Rounded16 rounded(row.scores + t, wide_scale);
      if (batch.bytes) store_words(rounded.values, kCodeTables.byte_order, words + t / 4 + batch.row.bytes);
      if (batch.pairs)
        store_words(rounded.values, kCodeTables.nibble_pair_order, words + t / 4 + batch.row.pairs);
    }
  }
}

// Online softmax of some rows over a batch (Milakov & Gimelshein 2018), then rounded weights. Step by step
// for all rows: each step's latency hides behind the other rows.
void weigh_rows(const Batch& batch, const BatchRow* rows, int count, int dim) {
  constexpr int kMaxPages = kCodeBatchTokens / 16;
  float largest[kMaxFused][kMaxPages];
  for (int r = 0; r < count; ++r) raise_maximum(batch, rows[r], dim);
  for (int r = 0; r < count; ++r) weigh(batch, rows[r], largest[r]);
  const float limit = wide_weight_limit(batch.tokens);
  for (int r = 0; r < count; ++r) {
    for (int page = 0; page < rows[r].pages; ++page)
      round_weights(batch, rows[r], page, largest[r][page], limit);
  }
}

template <bool kStaged>
void score_page(const PageCodes& page, const uint32_t* staged, const CodeQueries& queries, int first,
                int rows, float* scores, size_t stride) {
  const PageCodes again{page.side, page.slabs, page.slabs, page.tokens};
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

template <int kRows, bool kStaged>
HWY_INLINE void add_some(const PageCodes& page, const uint32_t* staged, const AddRows& add, float* acc,
                         size_t stride) {
  if constexpr (kStaged) {
    add_staged_rows<kRows>(page, staged, add, acc, stride);
  } else {
    add_rows<kRows>(page, add, acc, stride);
  }
}

template <bool kStaged>
void add_page(const PageCodes& page, const uint32_t* staged, AddRows add, int first, int rows, float* acc,
              size_t stride) {
  const PageCodes again{page.side, page.slabs, page.slabs, page.tokens};
  const AddRows base = add;
  for (int row = first; row < rows; row += kMaxFused) {
    const PageCodes& which = row == first ? page : again;
    add.weights = base.weights + row * base.weight_stride;
    add.factors = base.factors + row * base.factor_stride;
    float* out = acc + row * stride;
    switch (std::min(kMaxFused, rows - row)) {
      case 1:
        add_some<1, kStaged>(which, staged, add, out, stride);
        break;
      case 2:
        add_some<2, kStaged>(which, staged, add, out, stride);
        break;
      case 3:
        add_some<3, kStaged>(which, staged, add, out, stride);
        break;
      default:
        add_some<4, kStaged>(which, staged, add, out, stride);
    }
  }
}

void see_codes(const CodePlan& plan, const PageRun& run, const CodeQueries& queries,
               const AttentionState& state, CodeScratch& scratch) {
  const int tokens = plan.page_tokens, rows = queries.rows;
  const int batch_pages = code_batch_pages(tokens), batch_tokens = batch_pages * tokens;
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
      return PageCodes{side, slabs, more ? slabs + static_cast<size_t>(batch_pages) * kMaxSlabs : slabs,
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
    const auto has = [&](CodeForm form) { return (orders >> static_cast<int>(form) & 1) != 0; };
    const Batch batch{plan.value,
                      run.slabs + static_cast<size_t>(page) * kMaxSlabs,
                      tokens,
                      page == 0 ? run.masked_tokens : 0,
                      has(CodeForm::kNibbles),
                      has(CodeForm::kCrumbs) || has(CodeForm::kCrumbPair),
                      has(CodeForm::kBytes),
                      orders >> static_cast<int>(CodeForm::kNibblePair) != 0,
                      row_words};
    for (int first = run.first_query[page]; first < rows; first += kMaxFused) {
      BatchRow some[kMaxFused];
      const int count = std::min(kMaxFused, rows - first);
      for (int i = 0; i < count; ++i) {
        const size_t row = static_cast<size_t>(first) + i;
        int visible = 1;
        while (page + visible < end && run.first_query[page + visible] <= first + i) ++visible;
        some[i] = {scores + row * batch_tokens,
                   state.maximum + row,
                   state.sum + row,
                   state.acc + row * state.stride,
                   weights + row * row_words.size,
                   factors + row * 2 * batch_pages,
                   visible};
      }
      weigh_rows(batch, some, count, plan.value.dim);
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
  const DF d;
  VF narrow_most = hn::Zero(d), wide_most = narrow_most;
  HWY_ALIGN float wide_sums[kGroupFeatures] = {};  // the order of sums is the same for all vector lengths
  for (const CodeGroup& group : side.groups) {
    for (int f = 0; f < group.features; f += static_cast<int>(hn::Lanes(d))) {
      const VF magnitude = hn::Abs(load_first(d, features + group.feature + f, group.features - f));
      if (is_wide(group.form)) {
        wide_most = hn::Max(wide_most, magnitude);
        float* sum = wide_sums + f % kGroupFeatures;
        hn::Store(hn::Add(hn::Load(d, sum), magnitude), d, sum);
      } else {
        narrow_most = hn::Max(narrow_most, magnitude);
      }
    }
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, narrow_most));
  const float largest_wide = hn::GetLane(hn::MaxOfLanes(d, wide_most));
  float sum_wide = 0;
  for (const float sum : wide_sums) sum_wide += sum;
  const float step = largest / 127, wide_step = std::max(largest_wide / 32767, sum_wide / kWideBudget);
  const float inverse = step > 1e-30f ? 1 / step : 0, wide_inverse = wide_step > 1e-30f ? 1 / wide_step : 0;
  narrow = step / kNarrowUnit;
  wide = wide_step / kWideUnit;
  const CodeTables& tables = kCodeTables;
  VI sums = hn::Zero(DI());
  for (const CodeGroup& group : side.groups) {
    uint32_t* out = words + group.query_word;
    for (int f = 0; f < group.features; f += kGroupFeatures) {
      HWY_ALIGN float rest[kGroupFeatures] = {};
      const float* x = features + group.feature + f;
      if (group.features - f < kGroupFeatures) {
        std::copy_n(x, group.features - f, rest);
        x = rest;
      }
      if (is_wide(group.form)) {
        const bool bytes = group.form == CodeForm::kBytes;
        const Rounded16 rounded(x, hn::Set(DF(), wide_inverse));
        store_words(rounded.values, bytes ? tables.byte_order : tables.nibble_pair_order, out);
        out += 8;
      } else {
        const bool nibbles = group.form == CodeForm::kNibbles;
        const Rounded16 rounded(x, hn::Set(DF(), inverse));
        for (const VI& values : rounded.values) sums = hn::Add(sums, values);
        store_bytes<int8_t>(rounded.values, nibbles ? tables.nibble_order : tables.crumb_order, out);
        out += 4;
      }
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

const CodeTables kCodeTables = make_code_tables();

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
  const size_t pages = code_batch_pages(plan.page_tokens), tokens = pages * plan.page_tokens;
  grow(scratch.scores, queries.rows * tokens);
  grow(scratch.weights, queries.rows * static_cast<size_t>(WeightRow(static_cast<int>(tokens)).size));
  grow(scratch.factors, queries.rows * 2 * pages);
  // 16 features of 16 bits a token at most, whole groups.
  const size_t groups = (std::max(plan.key.dim, plan.value.dim) + kGroupFeatures - 1) / kGroupFeatures;
  grow(scratch.staged, groups * plan.page_tokens * kGroupFeatures / 2);
  HWY_DYNAMIC_DISPATCH(see_codes)(plan, run, queries, state, scratch);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
