#include "kernels/cpu/simd_ops.h"

#include <cmath>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/simd_ops.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

using D = hn::ScalableTag<float>;

void f32_to_bf16_row(const float* x, uint16_t* y, size_t n) {
  const hn::ScalableTag<uint32_t> du;
  const hn::Rebind<uint16_t, decltype(du)> dh;
  const size_t lanes = hn::Lanes(du);
  auto convert = [&](size_t i, size_t count) {
    const auto value = load_first(D(), x + i, count);
    const auto bits = hn::BitCast(du, value);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
    const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff)));
    const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));  // NaN must not round to infinity
    const auto nan = hn::RebindMask(du, hn::IsNaN(value));
    const auto top = hn::ShiftRight<16>(hn::IfThenElse(nan, quiet, rounded));
    return hn::TruncateTo(dh, top);
  };
  for (size_t i = 0; i < n; i += lanes) store_first(convert(i, n - i), dh, y + i, n - i);
}

void bf16_to_f32_row(const uint16_t* x, float* y, size_t n) {
  const hn::ScalableTag<uint32_t> du;
  const hn::Rebind<uint16_t, decltype(du)> dh;
  const size_t lanes = hn::Lanes(du);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(dh, x + i)))), D(), y + i);
  }
  for (; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    std::memcpy(y + i, &bits, sizeof(bits));
  }
}

void rms_norm_row(const float* x, const float* weight, float epsilon, float* y, size_t n) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  auto sums = hn::Zero(d);
  for (size_t i = 0; i < n; i += lanes) {
    const auto v = load_first(d, x + i, n - i);
    sums = hn::MulAdd(v, v, sums);
  }
  const float mean = hn::GetLane(hn::SumOfLanes(d, sums)) / static_cast<float>(n);
  const auto scale = hn::Set(d, 1.0f / std::sqrt(mean + epsilon));
  for (size_t i = 0; i < n; i += lanes) {
    const auto v = hn::Mul(hn::Mul(load_first(d, x + i, n - i), scale), load_first(d, weight + i, n - i));
    store_first(v, d, y + i, n - i);
  }
}

void rotate_row(float* x, const float* cos, const float* sin, size_t half) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  for (size_t i = 0; i < half; i += lanes) {
    const size_t count = half - i;
    const auto a = load_first(d, x + i, count), b = load_first(d, x + half + i, count);
    const auto c = load_first(d, cos + i, count), s = load_first(d, sin + i, count);
    const auto low = hn::NegMulAdd(b, s, hn::Mul(a, c)), high = hn::MulAdd(a, s, hn::Mul(b, c));
    store_first(low, d, x + i, count);
    store_first(high, d, x + half + i, count);
  }
}

void silu_mul_row(const float* gate, const float* up, float* y, size_t n) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const auto one = hn::Set(d, 1.0f);
  for (size_t i = 0; i < n; i += lanes) {
    const auto g = load_first(d, gate + i, n - i);
    const auto silu = hn::Div(g, hn::Add(one, exp_f32(d, hn::Neg(g))));
    const auto v = hn::Mul(silu, load_first(d, up + i, n - i));
    store_first(v, d, y + i, n - i);
  }
}

// tanh GELU as x / (1 + e^(-2 u)): (1 + tanh u) / 2 = 1 / (1 + e^(-2 u)).
void gelu_mul_row(const float* gate, const float* up, float* y, size_t n) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const auto one = hn::Set(d, 1.0f);
  const auto linear = hn::Set(d, -2 * 0.7978845608f), cubic = hn::Set(d, -2 * 0.7978845608f * 0.044715f);
  for (size_t i = 0; i < n; i += lanes) {
    const auto g = load_first(d, gate + i, n - i);
    const auto exponent = hn::Mul(g, hn::MulAdd(hn::Mul(g, g), cubic, linear));
    const auto gelu = hn::Div(g, hn::Add(one, exp_f32(d, exponent)));
    store_first(hn::Mul(gelu, load_first(d, up + i, n - i)), d, y + i, n - i);
  }
}

void add_row(const float* x, float* y, size_t n) {
  const D d;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    store_first(hn::Add(load_first(d, x + i, n - i), load_first(d, y + i, n - i)), d, y + i, n - i);
  }
}

void store_row(const float* x, const float* bias, bool accumulate, float* y, size_t n) {
  const D d;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    auto v = load_first(d, x + i, n - i);
    if (bias != nullptr) v = hn::Add(v, load_first(d, bias + i, n - i));
    if (accumulate) v = hn::Add(v, load_first(d, y + i, n - i));
    store_first(v, d, y + i, n - i);
  }
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(f32_to_bf16_row);
HWY_EXPORT(bf16_to_f32_row);
HWY_EXPORT(rms_norm_row);
HWY_EXPORT(rotate_row);
HWY_EXPORT(silu_mul_row);
HWY_EXPORT(gelu_mul_row);
HWY_EXPORT(add_row);
HWY_EXPORT(store_row);

void f32_to_bf16_row(const float* x, uint16_t* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(f32_to_bf16_row)(x, y, n);
}
void bf16_to_f32_row(const uint16_t* x, float* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(bf16_to_f32_row)(x, y, n);
}
void rms_norm_row(const float* x, const float* weight, float epsilon, float* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(rms_norm_row)(x, weight, epsilon, y, n);
}
void rotate_row(float* x, const float* cos, const float* sin, size_t half) {
  HWY_DYNAMIC_DISPATCH(rotate_row)(x, cos, sin, half);
}
void silu_mul_row(const float* gate, const float* up, float* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(silu_mul_row)(gate, up, y, n);
}
void gelu_mul_row(const float* gate, const float* up, float* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(gelu_mul_row)(gate, up, y, n);
}
void add_row(const float* x, float* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(add_row)(x, y, n);
}
void store_row(const float* x, const float* bias, bool accumulate, float* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(store_row)(x, bias, accumulate, y, n);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
