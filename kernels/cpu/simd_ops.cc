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

HWY_INLINE hn::Vec<hn::Rebind<uint16_t, hn::ScalableTag<uint32_t>>> to_bf16(hn::Vec<D> value) {
  const hn::ScalableTag<uint32_t> du;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));  // NaN must not round to infinity
  const auto nan = hn::RebindMask(du, hn::IsNaN(value));
  return hn::TruncateTo(hn::Rebind<uint16_t, decltype(du)>(),
                        hn::ShiftRight<16>(hn::IfThenElse(nan, quiet, rounded)));
}

HWY_INLINE void store_bf16(hn::Vec<D> value, uint16_t* y, size_t count) {
  store_first(to_bf16(value), hn::Rebind<uint16_t, hn::ScalableTag<uint32_t>>(), y, count);
}

void f32_to_bf16_row(const float* x, uint16_t* y, size_t n) {
  for (size_t i = 0; i < n; i += hn::Lanes(D())) store_bf16(load_first(D(), x + i, n - i), y + i, n - i);
}

void f32_to_bf16_rows(const float* x, size_t x_stride, uint16_t* y, int rows, size_t n) {
  for (int row = 0; row < rows; ++row) f32_to_bf16_row(x + row * x_stride, y + row * n, n);
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

HWY_INLINE hn::Vec<D> norm_scale(const float* x, float epsilon, size_t n) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  auto sums = hn::Zero(d), second = sums, third = sums, fourth = sums;  // that do not wait for each other
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + i + lanes);
    const auto c = hn::LoadU(d, x + i + 2 * lanes), e = hn::LoadU(d, x + i + 3 * lanes);
    sums = hn::MulAdd(a, a, sums);
    second = hn::MulAdd(b, b, second);
    third = hn::MulAdd(c, c, third);
    fourth = hn::MulAdd(e, e, fourth);
  }
  for (; i < n; i += lanes) {
    const auto v = load_first(d, x + i, n - i);
    sums = hn::MulAdd(v, v, sums);
  }
  sums = hn::Add(hn::Add(sums, second), hn::Add(third, fourth));
  const float mean = hn::GetLane(hn::SumOfLanes(d, sums)) / static_cast<float>(n);
  return hn::Set(d, 1.0f / std::sqrt(mean + epsilon));
}

HWY_INLINE hn::Vec<D> normed(const float* x, const float* weight, hn::Vec<D> scale, size_t count) {
  return hn::Mul(hn::Mul(load_first(D(), x, count), scale), load_first(D(), weight, count));
}

void rms_norm_row(const float* x, const float* weight, float epsilon, float* y, size_t n) {
  const auto scale = norm_scale(x, epsilon, n);
  for (size_t i = 0; i < n; i += hn::Lanes(D()))
    store_first(normed(x + i, weight + i, scale, n - i), D(), y + i, n - i);
}

void rms_norm_row_to_bf16(const float* x, const float* weight, float epsilon, uint16_t* y, size_t n) {
  const auto scale = norm_scale(x, epsilon, n);
  for (size_t i = 0; i < n; i += hn::Lanes(D()))
    store_bf16(normed(x + i, weight + i, scale, n - i), y + i, n - i);
}

void rotate_heads(float* x, int heads, size_t dim, const float* cos, const float* sin, size_t half) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  for (size_t i = 0; i < half; i += lanes) {
    const size_t count = half - i;
    const auto c = load_first(d, cos + i, count), s = load_first(d, sin + i, count);
    float* head = x + i;
    for (int h = 0; h < heads; ++h, head += dim) {
      const auto a = load_first(d, head, count), b = load_first(d, head + half, count);
      const auto low = hn::NegMulAdd(b, s, hn::Mul(a, c)), high = hn::MulAdd(a, s, hn::Mul(b, c));
      store_first(low, d, head, count);
      store_first(high, d, head + half, count);
    }
  }
}

HWY_INLINE hn::Vec<D> silu(hn::Vec<D> gate) {
  const D d;
  return hn::Div(gate, hn::Add(hn::Set(d, 1.0f), exp_f32(d, hn::Neg(gate))));
}

// tanh GELU as x / (1 + e^(-2 u)): (1 + tanh u) / 2 = 1 / (1 + e^(-2 u)).
HWY_INLINE hn::Vec<D> gelu(hn::Vec<D> gate) {
  const D d;
  const auto linear = hn::Set(d, -2 * 0.7978845608f), cubic = hn::Set(d, -2 * 0.7978845608f * 0.044715f);
  const auto exponent = hn::Mul(gate, hn::MulAdd(hn::Mul(gate, gate), cubic, linear));
  return hn::Div(gate, hn::Add(hn::Set(d, 1.0f), exp_f32(d, exponent)));
}

void silu_mul_row(const float* gate, const float* up, float* y, size_t n) {
  const D d;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto activated = silu(load_first(d, gate + i, n - i));
    store_first(hn::Mul(activated, load_first(d, up + i, n - i)), d, y + i, n - i);
  }
}

void gelu_mul_row(const float* gate, const float* up, float* y, size_t n) {
  const D d;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto activated = gelu(load_first(d, gate + i, n - i));
    store_first(hn::Mul(activated, load_first(d, up + i, n - i)), d, y + i, n - i);
  }
}

void add_row(const float* x, float* y, size_t n) {
  const D d;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    store_first(hn::Add(load_first(d, x + i, n - i), load_first(d, y + i, n - i)), d, y + i, n - i);
  }
}

void store_block(const StoredBlock& b) {
  const D d;
  const size_t cols = b.cols;
  for (int row = 0; row < b.rows; ++row) {
    const float* x = b.x + row * b.x_stride;
    float* y = b.y + row * b.y_stride;
    for (size_t i = 0; i < cols; i += hn::Lanes(d)) {
      auto v = load_first(d, x + i, cols - i);
      if (b.bias != nullptr) v = hn::Add(v, load_first(d, b.bias + i, cols - i));
      if (b.accumulate) v = hn::Add(v, load_first(d, y + i, cols - i));
      store_first(v, d, y + i, cols - i);
    }
  }
}

void store_row(const float* x, const float* bias, bool accumulate, float* y, size_t n) {
  store_block({x, 0, bias, accumulate, y, 0, 1, static_cast<int>(n)});
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(f32_to_bf16_row);
HWY_EXPORT(f32_to_bf16_rows);
HWY_EXPORT(bf16_to_f32_row);
HWY_EXPORT(rms_norm_row);
HWY_EXPORT(rotate_heads);
HWY_EXPORT(silu_mul_row);
HWY_EXPORT(gelu_mul_row);
HWY_EXPORT(add_row);
HWY_EXPORT(store_row);
HWY_EXPORT(store_block);
HWY_EXPORT(rms_norm_row_to_bf16);

void f32_to_bf16_row(const float* x, uint16_t* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(f32_to_bf16_row)(x, y, n);
}
void f32_to_bf16_rows(const float* x, size_t x_stride, uint16_t* y, int rows, size_t n) {
  HWY_DYNAMIC_DISPATCH(f32_to_bf16_rows)(x, x_stride, y, rows, n);
}
void bf16_to_f32_row(const uint16_t* x, float* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(bf16_to_f32_row)(x, y, n);
}
void rms_norm_row(const float* x, const float* weight, float epsilon, float* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(rms_norm_row)(x, weight, epsilon, y, n);
}
void rotate_heads(float* x, int heads, size_t dim, const float* cos, const float* sin, size_t half) {
  HWY_DYNAMIC_DISPATCH(rotate_heads)(x, heads, dim, cos, sin, half);
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
void store_block(const StoredBlock& block) {
  HWY_DYNAMIC_DISPATCH(store_block)(block);
}
void rms_norm_row_to_bf16(const float* x, const float* weight, float epsilon, uint16_t* y, size_t n) {
  HWY_DYNAMIC_DISPATCH(rms_norm_row_to_bf16)(x, weight, epsilon, y, n);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
