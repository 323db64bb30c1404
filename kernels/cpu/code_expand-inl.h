// Codes of one group of a page's K or V to bytes and 16-bit words in registers, by table look-ups. Included
// once per target (Highway's foreach_target).
#if defined(LOWKEY_CODE_EXPAND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWKEY_CODE_EXPAND_INL_H_
#undef LOWKEY_CODE_EXPAND_INL_H_
#else
#define LOWKEY_CODE_EXPAND_INL_H_
#endif

#include "kernels/cpu/code_attention.h"
#include "kernels/cpu/simd_dot-inl.h"
#include "kernels/cpu/simd_math-inl.h"
#include "kernels/page/embedded_quantizer.h"

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

// Hands out one group's values: plane_of(plane)(word, b) gives word `word` (along the packed extent) of plane
// `plane` for kBlocks registers of the other extent; narrow(quad, b, bytes) and wide(pair, b, words) take
// them in the order of element_order().
template <int kBlocks, class Planes, class Narrow, class Wide>
HWY_INLINE void expand(CodeForm form, int extent, const Tables& tables, Planes plane_of, Narrow narrow,
                       Wide wide) {
  VW x[kBlocks], y[kBlocks], z;
  switch (form) {
    case CodeForm::kNibbles: {
      const auto codes = plane_of(0);
      for (int w = 0; w < (extent + 7) / 8; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) x[b] = codes(w, b);
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(2 * w, b, tables.nibbles.low(x[b]));
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) narrow(2 * w + 1, b, tables.nibbles.high(x[b]));
      }
      return;
    }
    case CodeForm::kCrumbs: {
      const auto codes = plane_of(0);
      for (int w = 0; w < (extent + 15) / 16; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) x[b] = codes(w, b);
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
    }
    case CodeForm::kCrumbPair: {
      const auto first = plane_of(0), second = plane_of(1);
      for (int w = 0; w < (extent + 15) / 16; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {  // elements 0 and 2, then 1 and 3 of every byte, as nibbles
          const VW high = first(w, b), low = second(w, b);
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
    }
    case CodeForm::kBytes: {
      const auto codes = plane_of(0);
      for (int w = 0; w < (extent + 3) / 4; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {
          x[b] = codes(w, b);
          wide(2 * w, b, wide_values<4, 0>(tables, x[b], x[b]));
          wide(2 * w + 1, b, wide_values<12, 8>(tables, x[b], x[b]));
        }
      }
      return;
    }
    case CodeForm::kNibblePair: {
      const auto high = plane_of(0), low = plane_of(1);
      for (int w = 0; w < (extent + 7) / 8; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) expand_nibble_pair(tables, high(w, b), low(w, b), w, b, wide);
      }
      return;
    }
    case CodeForm::kCrumbsNibble:
    case CodeForm::kNibbleCrumbs: {
      const bool high_crumbs = form == CodeForm::kCrumbsNibble;
      const int words = (extent + 7) / 8, crumbs = high_crumbs ? 0 : 1;
      const auto first = plane_of(crumbs), second = plane_of(crumbs + 1),
                 nibble = plane_of(high_crumbs ? 2 : 0);
      for (int w = 0; w < words; ++w) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {
          x[b] = first(w / 2, b), y[b] = second(w / 2, b), z = nibble(w, b);
          const VW joined = w % 2 == 0 ? nibbles_of<0>(x[b], y[b]) : nibbles_of<1>(x[b], y[b]);
          expand_nibble_pair(tables, high_crumbs ? joined : z, high_crumbs ? z : joined, w, b, wide);
        }
      }
      return;
    }
  }
}

// 16 values times a scale, of a magnitude below 2^15, rounded to nearest (even).
struct Rounded16 {
  HWY_INLINE Rounded16(const float* x, VF scale) {
    for (size_t i = 0; i < 16; i += hn::Lanes(DF()))
      values[i / hn::Lanes(DF())] = nearest_int(hn::Mul(hn::LoadU(DF(), x + i), scale));
  }
  VI values[16 / hn::MaxLanes(DF())];
};

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LOWKEY_CODE_EXPAND_INL_H_
