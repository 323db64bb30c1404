#include "kernels/cpu/bf16_gate.h"

#include "kernels/cpu/bf16_panels.h"

#if defined(__x86_64__)
#include "kernels/cpu/bf16_math.h"
#endif

namespace lowkey::kernels {

#if defined(__x86_64__)

namespace {

// x / (1 + 2^t), to 2^-14 of a reciprocal.
LOWKEY_BF16_INLINE __m512 over_one_plus_power(__m512 x, __m512 t) {
  return _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), power_of_two(t))));
}

LOWKEY_BF16_INLINE __m512 silu(__m512 x) {
  return over_one_plus_power(x, _mm512_mul_ps(x, _mm512_set1_ps(-kLog2E)));
}

// tanh GELU as x / (1 + e^(-2 u)): (1 + tanh u) / 2 = 1 / (1 + e^(-2 u)), u = sqrt(2 / pi) (x + 0.044715
// x^3).
LOWKEY_BF16_INLINE __m512 gelu(__m512 x) {
  constexpr float kLinear = -2 * 0.7978845608f * kLog2E, kCubic = kLinear * 0.044715f;
  const __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(kCubic), _mm512_set1_ps(kLinear));
  return over_one_plus_power(x, _mm512_mul_ps(x, slope));
}

template <bool kGelu>
LOWKEY_BF16_INLINE __m512 gated(const GatedBlock& b, ptrdiff_t row, int column) {
  __m512 gate = _mm512_loadu_ps(b.gate + row * b.stride + column);
  __m512 up = _mm512_loadu_ps(b.up + row * b.stride + column);
  if (b.gate_bias != nullptr) gate = _mm512_add_ps(gate, _mm512_loadu_ps(b.gate_bias + column));
  if (b.up_bias != nullptr) up = _mm512_add_ps(up, _mm512_loadu_ps(b.up_bias + column));
  return _mm512_mul_ps(kGelu ? gelu(gate) : silu(gate), up);
}

template <bool kGelu>
LOWKEY_BF16_TARGET void gate_rows(const GatedBlock& b) {
  static_assert(kPanelOut == 32);
  for (int row = 0; row < b.rows; ++row) {
    const __m512 low = gated<kGelu>(b, row, 0), high = gated<kGelu>(b, row, 16);
    _mm512_storeu_si512(b.y + row * b.y_stride, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
}

}  // namespace

void gate_block(const GatedBlock& block) {
  return block.gelu ? gate_rows<true>(block) : gate_rows<false>(block);
}

#else

void gate_block(const GatedBlock&) {
  __builtin_trap();
}

#endif

}  // namespace lowkey::kernels
