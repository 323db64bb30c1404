#include "kernels/cpu/exp_sums.h"

#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/exp_sums.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

using F = hn::ScalableTag<float>;
using D = hn::ScalableTag<double>;
using HalfF = hn::Rebind<float, D>;
using V = hn::Vec<D>;

// e^x for x <= 0: x = n ln 2 + r, |r| <= ln 2 / 2; the Taylor series of e^r to r^13 leaves 5e-18 of it. 2^n
// is taken in two factors, as the results go down to the smallest denormal.
HWY_INLINE V exp_f64(V x) {
  const D d;
  const hn::RebindToSigned<D> di;
  const V lowest = hn::Set(d, -745.13);
  const V clamped = hn::Max(x, lowest);
  const V n = hn::Round(hn::Mul(clamped, hn::Set(d, 1.4426950408889634)));
  V r = hn::NegMulAdd(n, hn::Set(d, 0x1.62e42fee00000p-1), clamped);  // ln 2: the first part is exact in n r
  r = hn::NegMulAdd(n, hn::Set(d, 0x1.a39ef35793c76p-33), r);
  constexpr double kFactors[] = {
      1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
      1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
  V p = hn::Set(d, 1.0 / 6227020800);
  for (const double factor : kFactors) p = hn::MulAdd(p, r, hn::Set(d, factor));
  const auto whole = hn::ConvertTo(di, n);
  const auto half = hn::ShiftRight<1>(whole), rest = hn::Sub(whole, half), bias = hn::Set(di, 1023);
  const V first = hn::BitCast(d, hn::ShiftLeft<52>(hn::Add(half, bias)));
  const V second = hn::BitCast(d, hn::ShiftLeft<52>(hn::Add(rest, bias)));
  return hn::IfThenElseZero(hn::Ge(x, lowest), hn::Mul(hn::Mul(p, first), second));
}

// Of the first `count` logits at x; behind them whatever the zeros there come to.
HWY_INLINE V weights_at(const ExpWeights& weights, const float* x, size_t count) {
  const D d;
  V value = hn::PromoteTo(d, load_first(HalfF(), x, count));
  value = hn::Min(hn::Sub(value, hn::Set(d, weights.maximum)), hn::Zero(d));
  if (weights.temperature != 1) value = hn::Div(value, hn::Set(d, weights.temperature));
  const V weight = exp_f64(value);
  return hn::IfThenElseZero(hn::Ge(weight, hn::Set(d, weights.least)), weight);
}

double sum_of_weights(const ExpWeights& weights, const float* x, size_t n) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  V sums = hn::Zero(d), others = hn::Zero(d);
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    sums = hn::Add(sums, weights_at(weights, x + i, lanes));
    others = hn::Add(others, weights_at(weights, x + i + lanes, lanes));
  }
  sums = hn::Add(sums, others);
  for (; i < n; i += lanes) {
    const V last = weights_at(weights, x + i, n - i);
    sums = hn::Add(sums, hn::IfThenElseZero(hn::FirstN(d, n - i), last));
  }
  return hn::GetLane(hn::SumOfLanes(d, sums));
}

void weights_of_row(const ExpWeights& weights, const float* x, size_t n, double* y) {
  const D d;
  for (size_t i = 0; i < n; i += hn::Lanes(d))
    store_first(weights_at(weights, x + i, n - i), d, y + i, n - i);
}

RowMaximum row_maximum(const float* x, size_t n) {
  const F d;
  const size_t lanes = hn::Lanes(d);
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto maximum = lowest;
  auto unordered = hn::Zero(d);  // all bits of lanes that saw a NaN
  for (size_t i = 0; i < n; i += lanes) {
    auto v = load_first(d, x + i, n - i);
    if (n - i < lanes) v = hn::IfThenElse(hn::FirstN(d, n - i), v, lowest);
    const auto nan = hn::IsNaN(v);
    unordered = hn::Or(unordered, hn::VecFromMask(d, nan));
    maximum = hn::Max(maximum, hn::IfThenElse(nan, lowest, v));
  }
  const hn::RebindToUnsigned<F> du;
  const bool has_nan = !hn::AllTrue(du, hn::Eq(hn::BitCast(du, unordered), hn::Zero(du)));
  return {hn::GetLane(hn::MaxOfLanes(d, maximum)), has_nan};
}

size_t find_above(const float* x, size_t from, size_t n, float bar) {
  const F d;
  const size_t lanes = hn::Lanes(d);
  const auto bars = hn::Set(d, bar);
  size_t i = from;
  for (; i + lanes <= n; i += lanes) {
    const auto at = hn::FindFirstTrue(d, hn::Gt(hn::LoadU(d, x + i), bars));
    if (at >= 0) return i + static_cast<size_t>(at);
  }
  while (i < n && !(x[i] > bar)) ++i;
  return i;
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(row_maximum);
HWY_EXPORT(find_above);
HWY_EXPORT(sum_of_weights);
HWY_EXPORT(weights_of_row);

RowMaximum row_maximum(const float* x, size_t n) {
  return HWY_DYNAMIC_DISPATCH(row_maximum)(x, n);
}
size_t find_above(const float* x, size_t from, size_t n, float bar) {
  return HWY_DYNAMIC_DISPATCH(find_above)(x, from, n, bar);
}
double sum_of_weights(const ExpWeights& weights, const float* x, size_t n) {
  return HWY_DYNAMIC_DISPATCH(sum_of_weights)(weights, x, n);
}
void weights_of_row(const ExpWeights& weights, const float* x, size_t n, double* y) {
  HWY_DYNAMIC_DISPATCH(weights_of_row)(weights, x, n, y);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
