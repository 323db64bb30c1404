// Functions for results that are rounded to bf16 (2^-9): as exact as that needs. Only in files that run
// behind has_bf16_pairs().
#pragma once

#include "kernels/cpu/bf16_dots.h"

namespace lowkey::kernels {

inline constexpr float kLog2E = 1.44269504f;

// 2^t to 2.6e-6: 2^(t - floor(t)) as a polynomial of least relative error, times 2^floor(t). 0 and infinity
// where f32 ends.
LOWKEY_BF16_INLINE __m512 power_of_two(__m512 t) {
  constexpr int kMinusFloor = 0x09;  // t - floor(t), no exceptions
  const __m512 x = _mm512_reduce_ps(t, kMinusFloor);
  __m512 p = _mm512_set1_ps(0.0135341667f);
  p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(0.0520114629f));
  p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(0.241442756f));
  p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(0.693003835f));
  p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(1.00000259f));
  return _mm512_scalef_ps(p, t);
}

}  // namespace lowkey::kernels
