// What drawing a token reads of a row of logits, in vectors. Private to kernels/cpu.
#pragma once

#include <cstddef>

namespace lowkey::kernels::simd {

struct RowMaximum {
  float value;  // of those that are numbers
  bool has_nan;
};
RowMaximum row_maximum(const float* x, size_t n);

// The first index from `from` on with x[i] > bar; n: there is none.
size_t find_above(const float* x, size_t from, size_t n, float bar);

// Unnormalised probabilities e^((x - maximum) / temperature), float64 to about an ulp; those below `least`
// count as 0. REQUIRES: x <= maximum, which is finite; temperature > 0.
struct ExpWeights {
  double maximum = 0;
  double temperature = 1;
  double least = 0;
};
double sum_of_weights(const ExpWeights& weights, const float* x, size_t n);
void weights_of_row(const ExpWeights& weights, const float* x, size_t n, double* y);

}  // namespace lowkey::kernels::simd
