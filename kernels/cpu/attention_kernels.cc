#include "kernels/cpu/attention_kernels.h"

#include <cstddef>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_kernels.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// Rows x two vectors of c stay in registers: 6 x 2 accumulators hide the latency of two multiply-add pipes,
// and with b and the broadcast they fit the 16 registers of SSE and AVX2.
constexpr int kRows = 6;

// All loops over Rows and Vectors must be unrolled, or the accumulators live in memory (6 times slower): -O2
// alone does not.
template <int Rows, int Vectors>
HWY_INLINE void multiply_block(const TileProduct& p, int row, int column) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const ptrdiff_t a_stride = p.a_stride, b_stride = p.b_stride, c_stride = p.c_stride;
  V acc[Rows][Vectors];
  float* c = p.c + row * c_stride + column;
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      acc[r][v] = p.accumulate ? hn::LoadU(d, c + r * c_stride + v * lanes) : hn::Zero(d);
    }
  }
  const float* a = p.a + row * a_stride;
  const float* b = p.b + column;
  const int steps = p.k;
  for (int k = 0; k < steps; ++k, b += b_stride) {
    V column_values[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) column_values[v] = hn::LoadU(d, b + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const V value = hn::Set(d, a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) acc[r][v] = hn::MulAdd(value, column_values[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) hn::StoreU(acc[r][v], d, c + r * c_stride + v * lanes);
  }
}

template <int Rows>
void multiply_rows(const TileProduct& p, int row) {
  const int lanes = static_cast<int>(hn::Lanes(D()));
  int column = 0;
  for (; column + 2 * lanes <= p.n; column += 2 * lanes) multiply_block<Rows, 2>(p, row, column);
  for (; column < p.n; column += lanes) multiply_block<Rows, 1>(p, row, column);
}

void multiply_tile(const TileProduct& p) {
  int row = 0;
  for (; row + kRows <= p.rows; row += kRows) multiply_rows<kRows>(p, row);
  switch (p.rows - row) {
    case 1:
      return multiply_rows<1>(p, row);
    case 2:
      return multiply_rows<2>(p, row);
    case 3:
      return multiply_rows<3>(p, row);
    case 4:
      return multiply_rows<4>(p, row);
    case 5:
      return multiply_rows<5>(p, row);
    default:
      return;
  }
}

HWY_INLINE float exp_one(float x) {
  const hn::CappedTag<float, 1> d1;
  return hn::GetLane(exp_f32(d1, hn::Set(d1, x)));
}

// The largest of the first `valid` scores.
HWY_INLINE float largest(const float* scores, int valid) {
  const D d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const V lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  V maxima = lowest;
  for (int i = 0; i < valid; i += lanes) {
    const V s = hn::LoadU(d, scores + i);
    maxima = hn::Max(maxima, i + lanes <= valid ? s : hn::IfThenElse(hn::FirstN(d, valid - i), s, lowest));
  }
  return hn::GetLane(hn::MaxOfLanes(d, maxima));
}

// Scores become weights; their sum.
HWY_INLINE float weigh(float* scores, int valid, int n, float maximum) {
  const D d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  V sums = hn::Zero(d);
  const V shift = hn::Set(d, maximum);
  for (int i = 0; i < n; i += lanes) {
    V weight = hn::Zero(d);
    if (i < valid) {
      weight = exp_f32(d, hn::Sub(hn::LoadU(d, scores + i), shift));
      if (i + lanes > valid) weight = hn::IfThenElseZero(hn::FirstN(d, valid - i), weight);
    }
    hn::StoreU(weight, d, scores + i);
    sums = hn::Add(sums, weight);
  }
  return hn::GetLane(hn::SumOfLanes(d, sums));
}

// In two passes over some rows: one row's reductions wait for each other, those of several overlap.
void softmax_rows(const SoftmaxRows& s) {
  const D d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  constexpr int kTogether = 16;
  for (int first = 0; first < s.rows; first += kTogether) {
    const int end = first + kTogether < s.rows ? first + kTogether : s.rows;
    const auto valid = [&](int row) {
      const int seen = s.first_valid + row / s.group;
      return seen < s.tokens ? seen : s.tokens;
    };
    const auto scores = [&](int row) { return s.scores + static_cast<ptrdiff_t>(row) * s.stride; };
    for (int row = first; row < end; ++row) {
      const float page_maximum = largest(scores(row), valid(row));
      if (!(page_maximum > s.maximum[row])) continue;
      const float shrink = exp_one(s.maximum[row] - page_maximum);
      s.maximum[row] = page_maximum;
      s.sum[row] *= shrink;
      float* acc = s.acc + static_cast<ptrdiff_t>(row) * s.acc_stride;
      for (int f = 0; f < s.dim; f += lanes)
        hn::StoreU(hn::Mul(hn::LoadU(d, acc + f), hn::Set(d, shrink)), d, acc + f);
    }
    for (int row = first; row < end; ++row)
      s.sum[row] += weigh(scores(row), valid(row), s.stride, s.maximum[row]);
  }
}

void soft_cap_row(float* scores, float offset, float cap, int n) {
  const D d;
  const V shift = hn::Set(d, offset);
  for (int i = 0; i < n; i += static_cast<int>(hn::Lanes(d))) {
    const size_t left = n - i;
    store_first(soft_cap_f32(d, hn::Add(load_first(d, scores + i, left), shift), cap), d, scores + i, left);
  }
}

void merge_row(float& maximum, float& sum, float* acc, float other_maximum, float other_sum,
               const float* other_acc, int dim) {
  if (other_sum == 0.0f) return;
  const D d;
  const float joint = maximum > other_maximum ? maximum : other_maximum;
  const V a = hn::Set(d, exp_one(maximum - joint)), b = hn::Set(d, exp_one(other_maximum - joint));
  for (int f = 0; f < dim; f += static_cast<int>(hn::Lanes(d))) {
    hn::StoreU(hn::MulAdd(hn::LoadU(d, other_acc + f), b, hn::Mul(hn::LoadU(d, acc + f), a)), d, acc + f);
  }
  sum = sum * hn::GetLane(a) + other_sum * hn::GetLane(b);
  maximum = joint;
}

void add_weights(const WeightSums& s) {
  const D d;
  for (int i = 0; i < s.count; i += static_cast<int>(hn::Lanes(d))) {
    const size_t left = s.count - i;
    V weight = hn::Zero(d);
    for (int head = 0; head < s.heads; ++head) {
      const V score = hn::LoadU(d, s.scores + static_cast<ptrdiff_t>(head) * s.stride + i);
      weight = hn::MulAdd(exp_f32(d, hn::Sub(score, hn::Set(d, s.maximum[head]))),
                          hn::Set(d, s.inverse_sum[head]), weight);
    }
    for (float* sums : {s.columns, s.window}) {
      if (sums != nullptr) store_first(hn::Add(load_first(d, sums + i, left), weight), d, sums + i, left);
    }
  }
}

void scale_row(const float* x, float scale, float* out, int n) {
  const D d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  int i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale)), d, out + i);
  for (; i < n; ++i) out[i] = x[i] * scale;
}

void store_results(const ResultRows& r) {
  for (int row = 0; row < r.rows; ++row) {
    scale_row(r.acc + static_cast<ptrdiff_t>(row) * r.acc_stride, 1.0f / r.sum[row],
              r.out + static_cast<ptrdiff_t>(row / r.group) * r.out_stride + row % r.group * r.dim, r.dim);
  }
}

void add_scaled_row(const float* x, float scale, float* out, int n) {
  const D d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int i = 0; i < n; i += lanes) {
    store_first(hn::MulAdd(load_first(d, x + i, n - i), hn::Set(d, scale), load_first(d, out + i, n - i)), d,
                out + i, n - i);
  }
}

float dot_row(const float* x, const float* y, int n) {
  const D d;
  V sums = hn::Zero(d);
  for (int i = 0; i < n; i += static_cast<int>(hn::Lanes(d)))
    sums = hn::MulAdd(load_first(d, x + i, n - i), load_first(d, y + i, n - i), sums);
  return hn::GetLane(hn::SumOfLanes(d, sums));
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(multiply_tile);
HWY_EXPORT(softmax_rows);
HWY_EXPORT(soft_cap_row);
HWY_EXPORT(merge_row);
HWY_EXPORT(add_weights);
HWY_EXPORT(store_results);
HWY_EXPORT(scale_row);
HWY_EXPORT(add_scaled_row);
HWY_EXPORT(dot_row);

void multiply_tile(const TileProduct& product) {
  HWY_DYNAMIC_DISPATCH(multiply_tile)(product);
}
void softmax_rows(const SoftmaxRows& softmax) {
  HWY_DYNAMIC_DISPATCH(softmax_rows)(softmax);
}
void soft_cap_row(float* scores, float offset, float cap, int n) {
  HWY_DYNAMIC_DISPATCH(soft_cap_row)(scores, offset, cap, n);
}
void merge_row(float& maximum, float& sum, float* acc, float other_maximum, float other_sum,
               const float* other_acc, int dim) {
  HWY_DYNAMIC_DISPATCH(merge_row)(maximum, sum, acc, other_maximum, other_sum, other_acc, dim);
}
void add_weights(const WeightSums& sums) {
  HWY_DYNAMIC_DISPATCH(add_weights)(sums);
}
void store_results(const ResultRows& results) {
  HWY_DYNAMIC_DISPATCH(store_results)(results);
}
void scale_row(const float* x, float scale, float* out, int n) {
  HWY_DYNAMIC_DISPATCH(scale_row)(x, scale, out, n);
}
void add_scaled_row(const float* x, float scale, float* out, int n) {
  HWY_DYNAMIC_DISPATCH(add_scaled_row)(x, scale, out, n);
}
float dot_row(const float* x, const float* y, int n) {
  return HWY_DYNAMIC_DISPATCH(dot_row)(x, y, n);
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
