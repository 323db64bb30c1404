#include "kernels/cpu/bf16_panels.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace lowkey::kernels {

#if defined(__x86_64__)

// Intrinsics: Highway 1.0.3 knows no such target.
#define LOWKEY_BF16_TARGET __attribute__((target("avx512f,avx512bf16")))

namespace {

// Pairs of inputs of a part of a panel (48 KB): all rows pass over one part after the other. A part larger
// than what the L1 cache keeps beside the rows costs less than sums that are stored and loaded more often.
constexpr int kPartPairs = 384;
constexpr int kPairElements = 2 * kPanelOut;

struct Tile {
  const uint16_t* x;
  ptrdiff_t x_stride;
  const uint16_t* panel;
  int pairs;
  float* y;
  ptrdiff_t y_stride;
  bool add;               // to what y holds
  const uint16_t* ahead;  // to be prefetched beside `panel`
};

// kAhead: lines prefetched with every pair; a pair takes two.
template <int kRows, int kAhead>
LOWKEY_BF16_TARGET void multiply_tile(const Tile& tile) {
  __m512 sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    sums[r][0] = tile.add ? _mm512_loadu_ps(tile.y + r * tile.y_stride) : _mm512_setzero_ps();
    sums[r][1] = tile.add ? _mm512_loadu_ps(tile.y + r * tile.y_stride + 16) : _mm512_setzero_ps();
  }
  const uint16_t* x = tile.x;
  const uint16_t* panel = tile.panel;
  const uint16_t* ahead = tile.ahead;
  const ptrdiff_t stride = tile.x_stride;
  for (int pair = 0; pair < tile.pairs; ++pair) {
    const auto low = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel));
    const auto high = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel + kPanelOut));
    if constexpr (kAhead > 0) _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
    if constexpr (kAhead > 1) _mm_prefetch(reinterpret_cast<const char*>(ahead) + 64, _MM_HINT_T1);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int32_t two;
      std::memcpy(&two, x + r * stride, sizeof(two));
      const auto inputs = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], inputs, low);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], inputs, high);
    }
    x += 2;
    panel += kPairElements;
    if constexpr (kAhead > 0) ahead += 32 * kAhead;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(tile.y + r * tile.y_stride, sums[r][0]);
    _mm512_storeu_ps(tile.y + r * tile.y_stride + 16, sums[r][1]);
  }
}

template <int kAhead>
void multiply_rows(const Tile& tile, int rows) {
  using Function = void (*)(const Tile&);
  static constexpr Function functions[] = {
      multiply_tile<1, kAhead>,  multiply_tile<2, kAhead>,  multiply_tile<3, kAhead>,
      multiply_tile<4, kAhead>,  multiply_tile<5, kAhead>,  multiply_tile<6, kAhead>,
      multiply_tile<7, kAhead>,  multiply_tile<8, kAhead>,  multiply_tile<9, kAhead>,
      multiply_tile<10, kAhead>, multiply_tile<11, kAhead>, multiply_tile<12, kAhead>};
  functions[rows - 1](tile);
}

// All rows on one part of one panel, in tiles of nearly equal size.
void multiply_part(Tile tile, int rows) {
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  const Tile first = tile;
  for (int t = 0; t < tiles; ++t) {
    const int begin = rows * t / tiles, count = rows * (t + 1) / tiles - begin;
    tile.x = first.x + begin * first.x_stride;
    tile.y = first.y + begin * first.y_stride;
    if (tiles == 1) {
      multiply_rows<2>(tile, count);
    } else if (t < 2) {  // half of the lines each
      tile.ahead = first.ahead + t * first.pairs * kPanelOut;
      multiply_rows<1>(tile, count);
    } else {
      multiply_rows<0>(tile, count);
    }
  }
}

}  // namespace

bool has_bf16_panels() {
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kAmxBf16 = 1u << 22;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kAmxBf16) != 0) return false;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") != 0;
  }();
  return has;
}

void multiply_panels(const PanelProduct& p) {
  const int pairs = panel_pairs(p.in);
  const int parts = (pairs + kPartPairs - 1) / kPartPairs;
  for (int part = 0; part < parts; ++part) {
    const int begin = pairs * part / parts, end = pairs * (part + 1) / parts;
    for (int i = 0; i < p.num_panels; ++i) {
      const uint16_t* panel = p.panels[i] + static_cast<ptrdiff_t>(begin) * kPairElements;
      const uint16_t* ahead = i + 1 < p.num_panels
                                  ? p.panels[i + 1] + static_cast<ptrdiff_t>(begin) * kPairElements
                              : part + 1 < parts  ? p.panels[0] + static_cast<ptrdiff_t>(end) * kPairElements
                              : p.next != nullptr ? p.next
                                                  : panel;
      multiply_part(
          {p.x + 2 * begin, p.x_stride, panel, end - begin, p.y + i * kPanelOut, p.y_stride, part > 0, ahead},
          p.rows);
    }
  }
}

#else

bool has_bf16_panels() {
  return false;
}

void multiply_panels(const PanelProduct&) {
  __builtin_trap();
}

#endif

}  // namespace lowkey::kernels
