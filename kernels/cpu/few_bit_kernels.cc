#include "kernels/cpu/few_bit_kernels.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/few_bit_kernels.cc"
#define HWY_WANT_AVX3_DL 1
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd_dot-inl.h"
#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
using DHalf = hn::Rebind<hwy::float16_t, DF>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));
constexpr int kParts = kPanelOutputs / kLanes;  // registers of a panel's outputs
// Rows and panels whose sums stay in registers: 32 registers with AVX-512, 16 with AVX2.
constexpr int kTileRows = kLanes == 16 ? 6 : 2;
constexpr int kTilePanels = kLanes == 16 ? 2 : 1;

void round_row(const float* x, int in, int pairs, int bits, int8_t* codes, float* scales, int32_t* starts,
               float* sums) {
  const DF d;
  const DI di;
  const hn::Rebind<int8_t, DI> d8;
  constexpr int kBlock = kPairInputs / 2;
  for (int block = 0; block < 2 * pairs; ++block) {
    const int begin = block * kBlock, count = std::clamp(in - begin, 0, kBlock);
    const auto load = [&](int i) {
      return i < count ? load_first(d, x + begin + i, count - i) : hn::Zero(d);
    };
    auto largest = hn::Zero(d);
    for (int i = 0; i < kBlock; i += kLanes) largest = hn::Max(largest, hn::Abs(load(i)));
    const float most = hn::GetLane(hn::MaxOfLanes(d, largest));
    const auto inverse = hn::Set(d, most > 0 ? 127 / most : 0.0f);
    auto total = hn::Zero(di);
    for (int i = 0; i < kBlock; i += kLanes) {
      const auto code = hn::NearestInt(hn::Mul(load(i), inverse));
      total = hn::Add(total, code);
      hn::StoreU(hn::DemoteTo(d8, code), d8, codes + begin + i);
    }
    scales[block] = most / 127;
    const int32_t sum = hn::GetLane(hn::SumOfLanes(di, total));
    starts[block] = (bits == 8 ? -128 : -8) * sum;
    sums[block] = scales[block] * static_cast<float>(sum);
  }
}

// Adds one block's products to `sums`. `words`: its codes in the record of each panel; `x`: its 8 words of
// each row.
template <int kBits, int kRows, int kPanels>
HWY_INLINE void add_block(const uint32_t* const* words, const uint32_t* const* x,
                          VI (*sums)[kPanels * kParts]) {
  constexpr int kWords = kBits == 8 ? 8 : 4;
  const VW nibble = hn::Set(DW(), 0x0f0f0f0fu);
#pragma GCC unroll 8
  for (int q = 0; q < kWords; ++q) {
    VW low[kPanels * kParts], high[kPanels * kParts];
#pragma GCC unroll 16
    for (int c = 0; c < kPanels * kParts; ++c) {
      const VW w = hn::LoadU(DW(), words[c / kParts] + q * kPanelOutputs + c % kParts * kLanes);
      low[c] = kBits == 8 ? w : hn::And(w, nibble);
      high[c] = kBits == 8 ? w : hn::And(hn::ShiftRight<4>(w), nibble);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const VW first = hn::Set(DW(), x[r][q]);
#pragma GCC unroll 16
      for (int c = 0; c < kPanels * kParts; ++c) sums[r][c] = dot4(sums[r][c], low[c], first);
      if constexpr (kBits == 4) {
        const VW second = hn::Set(DW(), x[r][q + 4]);
#pragma GCC unroll 16
        for (int c = 0; c < kPanels * kParts; ++c) sums[r][c] = dot4(sums[r][c], high[c], second);
      }
    }
  }
}

// kRows rows from `row` on with kPanels panels from `panel` on.
template <int kBits, bool kOffsets, int kRows, int kPanels>
HWY_INLINE void multiply_tile(const FewBitProduct& p, int panel, int row) {
  constexpr int kColumns = kPanels * kParts;
  constexpr FewBitForm kForm{kBits, kOffsets};
  constexpr size_t kRecord = few_bit_record_bytes(kForm), kHeader = few_bit_header_bytes(kForm);
  constexpr size_t kBlockWords = kBits == 8 ? 128 : 64;
  const DF d;
  const size_t blocks = size_t{2} * p.x.pairs;
  VF sums[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) sums[r][c] = hn::Zero(d);
  for (size_t block = 0; block < blocks; ++block) {
    const uint32_t* words[kPanels];
    const hwy::float16_t* halves[kPanels];
#pragma GCC unroll 2
    for (int i = 0; i < kPanels; ++i) {
      const std::byte* record = p.panels + ((panel + i) * (blocks / 2) + block / 2) * kRecord;
      halves[i] = reinterpret_cast<const hwy::float16_t*>(record) + block % 2 * kPanelOutputs;
      words[i] = reinterpret_cast<const uint32_t*>(record + kHeader) + block % 2 * kBlockWords;
    }
    const uint32_t* x[kRows];
    VI ints[kRows][kColumns];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      x[r] = reinterpret_cast<const uint32_t*>(p.x.codes) + ((row + r) * blocks + block) * 8;
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c) ints[r][c] = hn::Set(DI(), p.x.starts[(row + r) * blocks + block]);
    }
    add_block<kBits, kRows, kPanels>(words, x, ints);
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) {
      const hwy::float16_t* const here = halves[c / kParts] + c % kParts * kLanes;
      const VF scale = hn::PromoteTo(d, hn::LoadU(DHalf(), here));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const VF both = hn::Mul(scale, hn::Set(d, p.x.scales[(row + r) * blocks + block]));
        sums[r][c] = hn::MulAdd(hn::ConvertTo(d, ints[r][c]), both, sums[r][c]);
      }
      if constexpr (kOffsets) {
        const VF offset = hn::PromoteTo(d, hn::LoadU(DHalf(), here + 2 * kPanelOutputs));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
          sums[r][c] = hn::MulAdd(offset, hn::Set(d, p.x.sums[(row + r) * blocks + block]), sums[r][c]);
      }
    }
  }
  for (int c = 0; c < kColumns; ++c) {
    const int first = panel * kPanelOutputs + c * kLanes;
    if (first >= p.outputs) break;
    const size_t count = p.outputs - first;
    for (int r = 0; r < kRows; ++r) {
      float* y = p.y + (row + r) * p.y_stride + first;
      VF v = sums[r][c];
      if (p.bias != nullptr) v = hn::Add(v, load_first(d, p.bias + first, count));
      if (p.accumulate) v = hn::Add(v, load_first(d, y, count));
      store_first(v, d, y, count);
    }
  }
}

template <int kBits, bool kOffsets, int kPanels>
HWY_INLINE void multiply_rows(const FewBitProduct& p, int panel) {
  int row = 0;
  for (; row + kTileRows <= p.rows; row += kTileRows)
    multiply_tile<kBits, kOffsets, kTileRows, kPanels>(p, panel, row);
  if constexpr (kTileRows == 6) {
    if (row + 4 <= p.rows) multiply_tile<kBits, kOffsets, 4, kPanels>(p, panel, row), row += 4;
    if (row + 2 <= p.rows) multiply_tile<kBits, kOffsets, 2, kPanels>(p, panel, row), row += 2;
  }
  for (; row < p.rows; ++row) multiply_tile<kBits, kOffsets, 1, kPanels>(p, panel, row);
}

template <int kBits, bool kOffsets>
HWY_INLINE void multiply_panels(const FewBitProduct& p) {
  int panel = 0;
  for (; panel + kTilePanels <= p.num_panels; panel += kTilePanels)
    multiply_rows<kBits, kOffsets, kTilePanels>(p, panel);
  for (; panel < p.num_panels; ++panel) multiply_rows<kBits, kOffsets, 1>(p, panel);
}

void few_bit_product(const FewBitProduct& product) {
  if (product.form.bits == 8) return multiply_panels<8, false>(product);
  product.form.offsets ? multiply_panels<4, true>(product) : multiply_panels<4, false>(product);
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(round_row);
HWY_EXPORT(few_bit_product);

void round_row(const float* x, int in, int pairs, int bits, int8_t* codes, float* scales, int32_t* starts,
               float* sums) {
  HWY_DYNAMIC_DISPATCH(round_row)(x, in, pairs, bits, codes, scales, starts, sums);
}
void few_bit_product(const FewBitProduct& product) {
  HWY_DYNAMIC_DISPATCH(few_bit_product)(product);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
