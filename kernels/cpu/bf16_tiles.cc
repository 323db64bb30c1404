#include "kernels/cpu/bf16_tiles.h"

#include <algorithm>

#if defined(__x86_64__)
#include "kernels/cpu/bf16_dots.h"
#endif

namespace lowkey::kernels {

bool is_in_pairs(const PageLayout& layout, const VectorLayout& vector) {
  if (vector.quantizer != Quantizer::kFull || layout.dtype == DType::kF32 || vector.dim == 0 ||
      vector.dim % kTileStep != 0 || layout.page_tokens % kTileStep != 0 ||
      vector.num_planes * kGroupFeatures != vector.dim)
    return false;
  const Plane* planes = layout.planes.data() + vector.first_plane;
  for (int i = 1; i < vector.num_planes; ++i) {
    if (planes[i].level != planes[0].level || planes[i].offset != planes[i - 1].offset + planes[i - 1].bytes)
      return false;
  }
  return true;
}

#if defined(__x86_64__)

namespace {

// 16 words of each of `rows` rows of `stride` elements, the first `words` of them; zeros beyond.
LOWKEY_BF16_INLINE void load_block(const uint16_t* from, int rows, int stride, int words,
                                   __m512i (&block)[16]) {
  const auto mask = static_cast<__mmask16>((1u << words) - 1);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    block[i] = i < rows ? _mm512_maskz_loadu_epi32(mask, from + static_cast<ptrdiff_t>(i) * stride)
                        : _mm512_setzero_si512();
  }
}

LOWKEY_BF16_INLINE void transpose(__m512i (&block)[16]) {
  __m512i twos[16], fours[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    twos[i] = _mm512_unpacklo_epi32(block[i], block[i + 1]);
    twos[i + 1] = _mm512_unpackhi_epi32(block[i], block[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    fours[i] = _mm512_unpacklo_epi64(twos[i], twos[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(twos[i], twos[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(twos[i + 1], twos[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(twos[i + 1], twos[i + 3]);
  }
  // Part k (of 128 bits) of fours[4 i + j] has column 4 k + j of rows 4 i .. 4 i + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i even_low = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
    const __m512i even_high = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd);
    block[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    block[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    block[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    block[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
}

}  // namespace

LOWKEY_BF16_TARGET void make_key_pairs(const uint16_t* rows, int tokens, int extent, int dim,
                                       uint16_t* pairs) {
  for (int f = 0; f < dim; f += 32) {
    const int words = std::min(16, (dim - f) / 2);
    for (int t = 0; t < extent; t += 16) {
      __m512i block[16];
      load_block(rows + static_cast<ptrdiff_t>(t) * dim + f, tokens - t, dim, words, block);
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        if (i < words)
          _mm512_storeu_si512(pairs + (static_cast<ptrdiff_t>(f / 2 + i) * extent + t) * 2, block[i]);
      }
    }
  }
}

LOWKEY_BF16_TARGET void make_value_pairs(const uint16_t* rows, int tokens, int extent, int dim,
                                         uint16_t* pairs) {
  for (int f = 0; f < dim; f += 16) {
    for (int t = 0; t < extent; t += 2, pairs += 32) {
      __m512i words = _mm512_setzero_si512();
      const auto* row = reinterpret_cast<const __m256i*>(rows + static_cast<ptrdiff_t>(t) * dim + f);
      if (t < tokens) words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(row));
      if (t + 1 < tokens) {
        const auto* next = reinterpret_cast<const __m256i*>(rows + static_cast<ptrdiff_t>(t + 1) * dim + f);
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(next));
        words = _mm512_or_si512(words, _mm512_slli_epi32(high, 16));
      }
      _mm512_storeu_si512(pairs, words);
    }
  }
}

#else

void make_key_pairs(const uint16_t*, int, int, int, uint16_t*) {
  __builtin_trap();
}
void make_value_pairs(const uint16_t*, int, int, int, uint16_t*) {
  __builtin_trap();
}

#endif

}  // namespace lowkey::kernels
