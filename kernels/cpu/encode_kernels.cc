#include "kernels/cpu/encode_kernels.h"

#include <algorithm>
#include <cmath>

#include "kernels/page/dtype.h"
#include "kernels/page/embedded_quantizer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/encode_kernels.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
using VU = hn::Vec<DU>;

int lanes() {
  return static_cast<int>(hn::Lanes(DF()));
}

int padded(int inner) {
  return (inner + kEncodeLanes - 1) / kEncodeLanes * kEncodeLanes;
}

#if HWY_TARGET == HWY_SCALAR

void load_columns(const std::byte* rows, DType dtype, int tokens, int dim, const float* mean,
                  float* columns) {
  for (int f = 0; f < dim; ++f) {
    for (int t = 0; t < tokens; ++t) {
      const float x = load_element(rows, dtype, static_cast<size_t>(t) * dim + f);
      columns[static_cast<size_t>(f) * tokens + t] = mean == nullptr ? x : x - mean[f];
    }
  }
}

void columns_to_rows(const float* columns, int dim, int tokens, float* rows, int stride) {
  for (int t = 0; t < tokens; ++t) {
    for (int f = 0; f < dim; ++f)
      rows[static_cast<size_t>(t) * stride + f] = columns[static_cast<size_t>(f) * tokens + t];
  }
}

#else

using D4 = hn::CappedTag<float, 4>;
using V4 = hn::Vec<D4>;

HWY_INLINE V4 load4(const std::byte* rows, DType dtype, size_t index) {
  const D4 d;
  if (dtype == DType::kF32) return hn::LoadU(d, reinterpret_cast<const float*>(rows) + index);
  if (dtype == DType::kBf16) {
    const hn::Rebind<uint16_t, D4> d16;
    const hn::RebindToUnsigned<D4> d32;
    const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(rows) + index);
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
  }
  HWY_ALIGN float values[4];
  for (int i = 0; i < 4; ++i) values[i] = load_element(rows, dtype, index + i);
  return hn::Load(d, values);
}

// Stores the transposed 4 x 4 block of r0 .. r3.
HWY_INLINE void store_transposed(V4 r0, V4 r1, V4 r2, V4 r3, float* out, size_t stride) {
  const D4 d;
  const V4 a = hn::InterleaveLower(d, r0, r1), b = hn::InterleaveUpper(d, r0, r1);
  const V4 c = hn::InterleaveLower(d, r2, r3), e = hn::InterleaveUpper(d, r2, r3);
  hn::StoreU(hn::ConcatLowerLower(d, c, a), d, out);
  hn::StoreU(hn::ConcatUpperUpper(d, c, a), d, out + stride);
  hn::StoreU(hn::ConcatLowerLower(d, e, b), d, out + 2 * stride);
  hn::StoreU(hn::ConcatUpperUpper(d, e, b), d, out + 3 * stride);
}

template <DType kDtype>
void load_columns_of(const std::byte* rows, int tokens, int dim, const float* mean, float* columns) {
  const D4 d;
  for (int f = 0; f < dim; f += 4) {
    const V4 centre = mean == nullptr ? hn::Zero(d) : hn::LoadU(d, mean + f);
    for (int t = 0; t < tokens; t += 4) {
      const size_t at = static_cast<size_t>(t) * dim + f;
      V4 r[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        r[i] = hn::Sub(load4(rows, kDtype, at + static_cast<size_t>(i) * dim), centre);
      store_transposed(r[0], r[1], r[2], r[3], columns + static_cast<size_t>(f) * tokens + t, tokens);
    }
  }
}

void load_columns(const std::byte* rows, DType dtype, int tokens, int dim, const float* mean,
                  float* columns) {
  if (dtype == DType::kF32) return load_columns_of<DType::kF32>(rows, tokens, dim, mean, columns);
  if (dtype == DType::kBf16) return load_columns_of<DType::kBf16>(rows, tokens, dim, mean, columns);
  load_columns_of<DType::kF16>(rows, tokens, dim, mean, columns);
}

void columns_to_rows(const float* columns, int dim, int tokens, float* rows, int stride) {
  const D4 d;
  for (int t = 0; t < tokens; t += 4) {
    for (int f = 0; f < dim; f += 4) {
      const float* from = columns + static_cast<size_t>(f) * tokens + t;
      V4 r[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        r[i] = f + i < dim ? hn::LoadU(d, from + static_cast<size_t>(i) * tokens) : hn::Zero(d);
      }
      store_transposed(r[0], r[1], r[2], r[3], rows + static_cast<size_t>(t) * stride + f, stride);
    }
  }
}

#endif  // HWY_SCALAR

void unscale_columns(const float* scale, int dim, int tokens, float* columns) {
  const DF d;
  for (int f = 0; f < dim; ++f) {
    const VF factor = hn::Set(d, 1.0f / scale[f]);
    float* column = columns + static_cast<size_t>(f) * tokens;
    for (int t = 0; t < tokens; t += lanes())
      hn::StoreU(hn::Mul(hn::LoadU(d, column + t), factor), d, column + t);
  }
}

void column_norms(const float* columns, int dim, int tokens, float edge, uint16_t* norms) {
  const DF d;
  for (int t = 0; t < tokens; t += lanes()) {
    VF sums[8], largest = hn::Zero(d);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sums[i] = hn::Zero(d);
    const auto add = [&](int f, VF& sum) HWY_ATTR {
      const VF x = hn::LoadU(d, columns + static_cast<size_t>(f) * tokens + t), size = hn::Abs(x);
      sum = hn::Add(sum, hn::Mul(x, x));
      largest = hn::IfThenElse(hn::Gt(size, largest), size, largest);
    };
    int f = 0;
    for (; f + 8 <= dim; f += 8) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) add(f + i, sums[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      if (f + i < dim) add(f + i, sums[i]);
    }
    VF sum = hn::Zero(d);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sum = hn::Add(sum, sums[i]);
    const VF rms = hn::Sqrt(hn::Div(sum, hn::Set(d, static_cast<float>(dim))));
    const VF least = hn::Div(largest, hn::Set(d, edge));
    HWY_ALIGN float norm[hn::MaxLanes(DF())];
    hn::Store(hn::IfThenElse(hn::Lt(rms, least), least, rms), d, norm);
    for (int i = 0; i < lanes(); ++i) norms[t + i] = f32_to_bf16_up(norm[i]);
  }
}

void block_extremes(const float* values, int stride, int outer, int inner, int span, float* low,
                    float* high) {
  const DF d;
  for (int first = 0; first < outer; first += span, low += inner, high += inner) {
    const int last = std::min(first + span, outer);
    for (int i = 0; i < inner; i += lanes()) {
      VF least = hn::Set(d, HUGE_VALF), most = hn::Set(d, -HUGE_VALF);
      for (int o = first; o < last; ++o) {
        const VF x = load_first(d, values + static_cast<size_t>(o) * stride + i, inner - i);
        least = hn::IfThenElse(hn::Lt(x, least), x, least);
        most = hn::IfThenElse(hn::Gt(x, most), x, most);
      }
      store_first(least, d, low + i, inner - i);
      store_first(most, d, high + i, inner - i);
    }
  }
}

// A table of 16 is one register on AVX-512.
constexpr bool kTableInRegister = hn::MaxLanes(DF()) == 16;

HWY_INLINE VF look_up(const float* table, VI index) {
  if constexpr (kTableInRegister) {
    return hn::TableLookupLanes(hn::LoadU(DF(), table), hn::IndicesFromVec(DF(), index));
  } else {
    return hn::GatherIndex(DF(), table, index);
  }
}

template <class Mask>
HWY_INLINE VI add_where(Mask condition, VI value, int step) {
  return hn::Add(value, hn::IfThenElseZero(hn::RebindMask(DI(), condition), hn::Set(DI(), step)));
}

// How many of the 15 inner edges are not above u: by halves where looking up is cheap. NaN: 0.
HWY_INLINE VI cell_of(const EmbeddedTables& tables, VF u) {
  const DF d;
  VI cell = hn::Zero(DI());
  if constexpr (kTableInRegister) {
    cell = add_where(hn::Ge(u, hn::Set(d, tables.edge[8])), cell, 8);
    for (int step : {4, 2, 1}) {
      const VF edge = look_up(tables.edge, hn::Add(cell, hn::Set(DI(), step)));
      cell = add_where(hn::Ge(u, edge), cell, step);
    }
  } else {
    for (int i = 1; i < 16; ++i) cell = add_where(hn::Ge(u, hn::Set(d, tables.edge[i])), cell, 1);
  }
  return cell;
}

template <bool kFine, bool kNormOfInner>
void embedded_codes_of(const GroupValues& group, const float* norms, int bits, uint32_t* codes) {
  const DF d;
  const EmbeddedTables& tables = embedded_tables();
  const int inner = padded(group.inner), shift = kFine ? 8 - bits : 4 - bits;
  for (int o = 0; o < group.outer; ++o, codes += inner) {
    for (int i = 0; i < inner; i += lanes()) {
      const VF norm = kNormOfInner ? hn::LoadU(d, norms + i) : hn::Set(d, norms[o]);
      const VF value = hn::LoadU(d, group.values + static_cast<size_t>(o) * group.stride + i);
      const VF u = hn::IfThenElseZero(hn::Gt(norm, hn::Zero(d)), hn::Div(value, norm));
      VI code = cell_of(tables, u);
      if constexpr (kFine) {
        const VF fine = hn::Mul(hn::Sub(u, look_up(tables.edge, code)), look_up(tables.inv_step, code));
        const VF clipped = hn::Min(hn::IfThenElseZero(hn::Gt(fine, hn::Zero(d)), fine), hn::Set(d, 15.0f));
        code = hn::Add(hn::ShiftLeft<4>(code), hn::ConvertTo(DI(), clipped));
      }
      hn::StoreU(hn::ShiftRightSame(hn::BitCast(DU(), code), shift), DU(), codes + i);
    }
  }
}

void embedded_codes(const GroupValues& group, const float* norms, bool norm_of_inner, int bits,
                    uint32_t* codes) {
  if (bits > 4) {
    if (norm_of_inner) return embedded_codes_of<true, true>(group, norms, bits, codes);
    return embedded_codes_of<true, false>(group, norms, bits, codes);
  }
  if (norm_of_inner) return embedded_codes_of<false, true>(group, norms, bits, codes);
  embedded_codes_of<false, false>(group, norms, bits, codes);
}

void affine_codes(const GroupValues& group, const float* minima, const float* steps, const AffineIndex& index,
                  int bits, uint32_t* codes) {
  const DF d;
  const int inner = padded(group.inner);
  const VF most = hn::Set(d, static_cast<float>((1 << bits) - 1)), zero = hn::Zero(d);
  for (int o = 0; o < group.outer; ++o, codes += inner) {
    const size_t row = static_cast<size_t>((index.outer_offset + o) / index.outer_span) * index.outer_step;
    for (int i = 0; i < inner; i += lanes()) {
      const size_t pair =
          row + static_cast<size_t>((index.inner_offset + i) / index.inner_span) * index.inner_step;
      const bool own = index.inner_span == 1;
      const VF minimum = own ? hn::LoadU(d, minima + pair) : hn::Set(d, minima[pair]);
      const VF step = own ? hn::LoadU(d, steps + pair) : hn::Set(d, steps[pair]);
      const VF value = hn::LoadU(d, group.values + static_cast<size_t>(o) * group.stride + i);
      const VF code = hn::Round(hn::Div(hn::Sub(value, minimum), step));
      const auto counts = hn::And(hn::Gt(code, zero), hn::Gt(step, zero));
      const VF clipped = hn::Min(hn::IfThenElseZero(counts, code), most);
      hn::StoreU(hn::BitCast(DU(), hn::ConvertTo(DI(), clipped)), DU(), codes + i);
    }
  }
}

void full_codes(const GroupValues& group, DType dtype, uint32_t* codes) {
  const DF d;
  const DU du;
  const int inner = padded(group.inner);
  for (int o = 0; o < group.outer; ++o, codes += inner) {
    for (int i = 0; i < inner; i += lanes()) {
      const VF value = hn::LoadU(d, group.values + static_cast<size_t>(o) * group.stride + i);
      VU bits = hn::BitCast(du, value);
      if (dtype == DType::kBf16) {
        const VU high = hn::ShiftRight<16>(bits), odd = hn::And(high, hn::Set(du, 1));
        const VU rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff))));
        const auto nan = hn::RebindMask(du, hn::IsNaN(value));
        bits = hn::IfThenElse(nan, hn::Or(high, hn::Set(du, 0x40)), rounded);
      }
      hn::StoreU(bits, du, codes + i);
    }
  }
}

void pack_plane(const uint32_t* codes, int outer, int inner, int bits, int left, uint32_t* words) {
  const DU d;
  const int n = 32 / bits, stride = padded(inner);
  const VU mask = hn::Set(d, bits == 32 ? ~0u : (1u << bits) - 1);
  for (int first = 0; first < outer; first += n, words += inner) {
    const int count = std::min(n, outer - first);
    for (int i = 0; i < inner; i += lanes()) {
      VU word = hn::Zero(d);
      for (int j = 0; j < count; ++j) {
        const VU code = hn::LoadU(d, codes + static_cast<size_t>(first + j) * stride + i);
        word = hn::Or(word, hn::ShiftLeftSame(hn::And(hn::ShiftRightSame(code, left), mask), bits * j));
      }
      store_first(word, d, words + i, inner - i);
    }
  }
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(load_columns);
HWY_EXPORT(columns_to_rows);
HWY_EXPORT(unscale_columns);
HWY_EXPORT(column_norms);
HWY_EXPORT(block_extremes);
HWY_EXPORT(embedded_codes);
HWY_EXPORT(affine_codes);
HWY_EXPORT(full_codes);
HWY_EXPORT(pack_plane);

void load_columns(const std::byte* rows, DType dtype, int tokens, int dim, const float* mean,
                  float* columns) {
  HWY_DYNAMIC_DISPATCH(load_columns)(rows, dtype, tokens, dim, mean, columns);
}
void columns_to_rows(const float* columns, int dim, int tokens, float* rows, int stride) {
  HWY_DYNAMIC_DISPATCH(columns_to_rows)(columns, dim, tokens, rows, stride);
}
void unscale_columns(const float* scale, int dim, int tokens, float* columns) {
  HWY_DYNAMIC_DISPATCH(unscale_columns)(scale, dim, tokens, columns);
}
void column_norms(const float* columns, int dim, int tokens, float edge, uint16_t* norms) {
  HWY_DYNAMIC_DISPATCH(column_norms)(columns, dim, tokens, edge, norms);
}
void block_extremes(const float* values, int stride, int outer, int inner, int span, float* low,
                    float* high) {
  HWY_DYNAMIC_DISPATCH(block_extremes)(values, stride, outer, inner, span, low, high);
}
void embedded_codes(const GroupValues& group, const float* norms, bool norm_of_inner, int bits,
                    uint32_t* codes) {
  HWY_DYNAMIC_DISPATCH(embedded_codes)(group, norms, norm_of_inner, bits, codes);
}
void affine_codes(const GroupValues& group, const float* minima, const float* steps, const AffineIndex& index,
                  int bits, uint32_t* codes) {
  HWY_DYNAMIC_DISPATCH(affine_codes)(group, minima, steps, index, bits, codes);
}
void full_codes(const GroupValues& group, DType dtype, uint32_t* codes) {
  HWY_DYNAMIC_DISPATCH(full_codes)(group, dtype, codes);
}
void pack_plane(const uint32_t* codes, int outer, int inner, int bits, int left, uint32_t* words) {
  HWY_DYNAMIC_DISPATCH(pack_plane)(codes, outer, inner, bits, left, words);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
