#include "kernels/cpu/bf16_panels.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include "kernels/cpu/bf16_dots.h"
#endif

namespace lowkey::kernels {

#if defined(__x86_64__)

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
  const float* begun;  // sums so far; null: zeros
  ptrdiff_t begun_stride;
  float* y;
  ptrdiff_t y_stride;
  bool accumulate;
  const uint16_t* ahead;  // to be prefetched beside `panel`
};

// kAhead: lines prefetched with every pair; a pair takes two.
template <int kRows, int kAhead>
LOWKEY_BF16_TARGET void multiply_tile(const Tile& tile) {
  __m512 sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    const ptrdiff_t at = r * tile.begun_stride;
    sums[r][0] = tile.begun != nullptr ? _mm512_loadu_ps(tile.begun + at) : _mm512_setzero_ps();
    sums[r][1] = tile.begun != nullptr ? _mm512_loadu_ps(tile.begun + at + 16) : _mm512_setzero_ps();
  }
  add_pairs<kRows, 2, kAhead>(sums, tile.x, tile.x_stride, tile.panel, kPanelOut, kPairElements, tile.pairs,
                              tile.ahead);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    float* y = tile.y + r * tile.y_stride;
    if (tile.accumulate) {
      sums[r][0] = _mm512_add_ps(sums[r][0], _mm512_loadu_ps(y));
      sums[r][1] = _mm512_add_ps(sums[r][1], _mm512_loadu_ps(y + 16));
    }
    _mm512_storeu_ps(y, sums[r][0]);
    _mm512_storeu_ps(y + 16, sums[r][1]);
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
    if (first.begun != nullptr) tile.begun = first.begun + begin * first.begun_stride;
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

bool has_bf16_pairs() {
  static const bool has = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
  }();
  return has;
}

bool has_bf16_panels() {
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kAmxBf16 = 1u << 22;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) == 0 && has_bf16_pairs();
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
      const bool to_result = part + 1 == parts && p.result != nullptr;
      multiply_part({.x = p.x + 2 * begin,
                     .x_stride = p.x_stride,
                     .panel = panel,
                     .pairs = end - begin,
                     .begun = part > 0 ? p.y + i * kPanelOut : nullptr,
                     .begun_stride = p.y_stride,
                     .y = (to_result ? p.result : p.y) + i * kPanelOut,
                     .y_stride = to_result ? p.result_stride : p.y_stride,
                     .accumulate = to_result && p.accumulate,
                     .ahead = ahead},
                    p.rows);
    }
  }
}

#else

bool has_bf16_pairs() {
  return false;
}

bool has_bf16_panels() {
  return false;
}

void multiply_panels(const PanelProduct&) {
  __builtin_trap();
}

#endif

}  // namespace lowkey::kernels
