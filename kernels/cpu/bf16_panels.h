// Products of bf16 rows with packed weights in AVX-512 BF16 (vdpbf16ps): blocks of rows against panels of
// kPanelOut outputs, f32 sums. Plain pointers, one thread.
//
// An output is one chain of pair products, inputs ascending, whatever rows come with it: its bits depend on
// its row and its weights alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowkey::kernels {

// Whether this machine multiplies pairs of bf16 (vdpbf16ps).
bool has_bf16_pairs();
// Whether weights are packed into panels for it. Not where there is AMX: oneDNN is faster there.
bool has_bf16_panels();

// A panel holds, for each pair of inputs, the two weights of each of its outputs side by side; an odd last
// input is paired with zeros, outputs beyond the last one are zeros.
inline constexpr int kPanelOut = 32;
// Rows that a pass over a panel serves: two vectors of sums each fill the registers.
inline constexpr int kTileRows = 12;
inline constexpr int kMaxPanels = 4;  // of one call

inline int panel_pairs(int in) {
  return (in + 1) / 2;
}
inline size_t panel_elements(int in) {
  return static_cast<size_t>(panel_pairs(in)) * 2 * kPanelOut;
}
// Elements from one row of x to the next: whole lines, and never a multiple of 4 KB, so that a tile's rows do
// not meet in one set of the L1 cache.
inline ptrdiff_t panel_row_stride(int in) {
  return (in + 31) / 32 * 32 + 32;
}

struct PanelProduct {
  const uint16_t* x = nullptr;  // bf16 [rows][x_stride]; behind an odd last input a zero
  ptrdiff_t x_stride = 0;
  int rows = 0;
  int in = 0;
  const uint16_t* panels[kMaxPanels] = {};
  int num_panels = 0;
  const uint16_t* next = nullptr;  // that the next call will begin with, for the prefetcher; null: unknown
  float* y = nullptr;              // f32 [rows][y_stride]: panel i's outputs from column i * kPanelOut on
  ptrdiff_t y_stride = 0;
  // Where finished sums go, columns as in y, added to what is there if `accumulate`; null: they stay in y.
  float* result = nullptr;
  ptrdiff_t result_stride = 0;
  bool accumulate = false;
};
void multiply_panels(const PanelProduct& product);

}  // namespace lowkey::kernels
