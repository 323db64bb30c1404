// The inner loop of products of bf16 pairs (vdpbf16ps) with f32 sums, and the instruction sets that those who
// include it compile for. Intrinsics: Highway 1.0.3 knows no such target. Only in files that run behind
// has_bf16_pairs().
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

// GCC 12 takes the operands that its intrinsics leave undefined for mistakes (bug 105593).
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define LOWKEY_BF16_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define LOWKEY_BF16_INLINE __attribute__((always_inline)) inline LOWKEY_BF16_TARGET

namespace lowkey::kernels {

// sums[r][v] += x[r][0 .. 2 pairs) times the columns of b: of every pair, vector v has the two elements of 16
// columns side by side, from b + v * second on; pairs are `step` elements apart. kAhead: lines prefetched
// with every pair. All loops over rows and vectors must be unrolled, or the sums live in memory.
template <int kRows, int kVectors, int kAhead>
LOWKEY_BF16_INLINE void add_pairs(__m512 (&sums)[kRows][kVectors], const uint16_t* x, ptrdiff_t x_stride,
                                  const uint16_t* b, ptrdiff_t second, ptrdiff_t step, int pairs,
                                  const uint16_t* ahead) {
  for (int pair = 0; pair < pairs; ++pair) {
    __m512bh columns[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      columns[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + v * second));
    if constexpr (kAhead > 0) _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
    if constexpr (kAhead > 1) _mm_prefetch(reinterpret_cast<const char*>(ahead) + 64, _MM_HINT_T1);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int32_t two;
      std::memcpy(&two, x + r * x_stride, sizeof(two));
      const auto inputs = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], inputs, columns[v]);
    }
    x += 2;
    b += step;
    if constexpr (kAhead > 0) ahead += 32 * kAhead;
  }
}

}  // namespace lowkey::kernels
