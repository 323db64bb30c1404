// Vector functions shared by the SIMD files; included once per target (Highway's foreach_target).
#if defined(LOWKEY_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWKEY_SIMD_MATH_INL_H_
#undef LOWKEY_SIMD_MATH_INL_H_
#else
#define LOWKEY_SIMD_MATH_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// e^x to about 2 ulp for x in [-87.3, 88]; below, 0; above, e^88. x = n ln 2 + r, |r| <= ln 2 / 2; the
// polynomial is the Taylor series of e^r to r^7 (its remainder there is under 6e-9), 2^n goes into the
// exponent bits.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_f32(D d, V x) {
  const hn::RebindToSigned<D> di;
  const auto lowest = hn::Set(d, -87.3f);
  const auto clamped = hn::Min(hn::Max(x, lowest), hn::Set(d, 88.0f));
  const auto n = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504f)));
  auto r =
      hn::NegMulAdd(n, hn::Set(d, 0.693359375f), clamped);  // ln 2 in two parts: the first is exact in n r
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  auto p = hn::Set(d, 1.0f / 5040);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 720));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenElseZero(hn::Ge(x, lowest), hn::Mul(p, hn::BitCast(d, exponent)));
}

// The same to 5e-7 for x from -5 to 0 (below, to 1e-7 x): where 2^n is an instruction, in a third of the
// operations. The polynomial: 2^t on [0, 1) with the least error.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V rough_exp_f32(D d, V x) {
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX3
  if constexpr (hn::MaxLanes(D()) == 16) {
    constexpr int kMinusFloor = 0x09;  // t - floor(t), no exceptions; 0 of infinity
    const __m512 t = hn::Mul(x, hn::Set(d, 1.44269504f)).raw;
    const V f{_mm512_reduce_ps(t, kMinusFloor)};
    V p = hn::Set(d, 1.8775767e-3f);
    p = hn::MulAdd(p, f, hn::Set(d, 8.9893397e-3f));
    p = hn::MulAdd(p, f, hn::Set(d, 5.5826318e-2f));
    p = hn::MulAdd(p, f, hn::Set(d, 2.4015361e-1f));
    p = hn::MulAdd(p, f, hn::Set(d, 6.9315308e-1f));
    p = hn::MulAdd(p, f, hn::Set(d, 9.9999994e-1f));
    return V{_mm512_scalef_ps(p.raw, t)};
  }
#endif
  return exp_f32(d, x);
}

// cap * tanh(x / cap) to about 1e-7 cap: tanh |a| = (1 - e) / (1 + e), e = e^(-2 |a|).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V soft_cap_f32(D d, V x, float cap) {
  const auto one = hn::Set(d, 1.0f);
  const auto e = exp_f32(d, hn::Mul(hn::Abs(x), hn::Set(d, -2.0f / cap)));
  const auto magnitude = hn::Mul(hn::Set(d, cap), hn::Div(hn::Sub(one, e), hn::Add(one, e)));
  return hn::CopySign(magnitude, x);
}

// Masked loads and stores touch only the lanes asked for on AVX-512; elsewhere Highway may read the whole
// vector, so the rest of a row goes through a buffer.
inline constexpr bool kHasMasks = HWY_TARGET <= HWY_AVX3;

// The first `count` lanes of p, zeros behind. Reads nothing beyond them.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> load_first(D d, const T* p, size_t count) {
  if (count >= hn::Lanes(d)) return hn::LoadU(d, p);
  if constexpr (kHasMasks) return hn::MaskedLoad(hn::FirstN(d, count), d, p);
  HWY_ALIGN T lanes[hn::MaxLanes(D())] = {};
  std::memcpy(lanes, p, count * sizeof(T));
  return hn::Load(d, lanes);
}

// Writes the first `count` lanes of v to p, nothing behind.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void store_first(hn::Vec<D> v, D d, T* p, size_t count) {
  if (count >= hn::Lanes(d)) return hn::StoreU(v, d, p);
  if constexpr (kHasMasks) return hn::BlendedStore(v, hn::FirstN(d, count), d, p);
  HWY_ALIGN T lanes[hn::MaxLanes(D())];
  hn::Store(v, d, lanes);
  std::memcpy(p, lanes, count * sizeof(T));
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LOWKEY_SIMD_MATH_INL_H_
