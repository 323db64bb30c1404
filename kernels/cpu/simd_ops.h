// Elementwise and row operations in Highway: one source, the best instruction set is chosen at run time.
// Plain pointers, no threads; the backend cuts the work. Every row's result depends on that row alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowkey::kernels::simd {

void f32_to_bf16_row(const float* x, uint16_t* y, size_t n);  // round to nearest even
void bf16_to_f32_row(const uint16_t* x, float* y, size_t n);
// y = x / sqrt(mean(x^2) + epsilon) * weight; y may be x.
void rms_norm_row(const float* x, const float* weight, float epsilon, float* y, size_t n);
// Rotates pairs (x[i], x[i + half]) by (cos[i], sin[i]).
void rotate_row(float* x, const float* cos, const float* sin, size_t half);
void silu_mul_row(const float* gate, const float* up, float* y, size_t n);
void gelu_mul_row(const float* gate, const float* up, float* y, size_t n);  // its tanh form
void add_row(const float* x, float* y, size_t n);
// y = x (+ bias unless null) (+ y if accumulate)
void store_row(const float* x, const float* bias, bool accumulate, float* y, size_t n);

}  // namespace lowkey::kernels::simd
