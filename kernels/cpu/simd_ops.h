// Elementwise and row operations in Highway: one source, the best instruction set is chosen at run time.
// Plain pointers, no threads; the backend cuts the work. Every row's result depends on that row alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowkey::kernels::simd {

void f32_to_bf16_row(const float* x, uint16_t* y, size_t n);  // round to nearest even
// The same of `rows` rows to rows that lie one after the other.
void f32_to_bf16_rows(const float* x, size_t x_stride, uint16_t* y, int rows, size_t n);
void bf16_to_f32_row(const uint16_t* x, float* y, size_t n);
// y = x / sqrt(mean(x^2) + epsilon) * weight; y may be x.
void rms_norm_row(const float* x, const float* weight, float epsilon, float* y, size_t n);
// Rotates pairs (x[i], x[i + half]) of each of `heads` heads, `dim` apart, by (cos[i], sin[i]).
void rotate_heads(float* x, int heads, size_t dim, const float* cos, const float* sin, size_t half);
void silu_mul_row(const float* gate, const float* up, float* y, size_t n);
void gelu_mul_row(const float* gate, const float* up, float* y, size_t n);  // its tanh form
void add_row(const float* x, float* y, size_t n);
// y = x (+ bias unless null) (+ y if accumulate)
void store_row(const float* x, const float* bias, bool accumulate, float* y, size_t n);
// The same of every row of a block.
struct StoredBlock {
  const float* x;
  ptrdiff_t x_stride;
  const float* bias;
  bool accumulate;
  float* y;
  ptrdiff_t y_stride;
  int rows;
  int cols;
};
void store_block(const StoredBlock& block);

// rms_norm_row and f32_to_bf16_row in one, with the same bits.
void rms_norm_row_to_bf16(const float* x, const float* weight, float epsilon, uint16_t* y, size_t n);

}  // namespace lowkey::kernels::simd
