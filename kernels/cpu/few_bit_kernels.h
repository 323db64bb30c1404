// Products of weights in few bits with rows of activations in 8 bits: integer dot products of 32 inputs,
// scaled and added up in f32 (Dettmers et al. 2022, arXiv:2208.07339, vector-wise; in blocks as ggml has
// them).
//
// Outputs lie in panels of 16, inputs in pairs of blocks (64 inputs). A pair of a panel is one record of
// whole cache lines:
//   2 x 16 scales (halves), where there are offsets those likewise, then for both blocks 8 words of 16
//   outputs x 4 inputs (8 bits), or 4 such words with inputs 4 j .. 4 j + 3 in the low halves of the bytes
//   and 16 + 4 j .. in the high ones (4 bits).
// Codes are stored unsigned, 128 or 8 too large: what that adds to a product is taken off where it begins. An
// offset meets the sum of its block's inputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/few_bit_weights.h"

namespace lowkey::kernels {

inline constexpr int kPanelOutputs = 16;
inline constexpr int kPairInputs = 64;  // two blocks of 32

constexpr size_t few_bit_header_bytes(FewBitForm form) {
  return form.offsets ? 128 : 64;
}
constexpr size_t few_bit_record_bytes(FewBitForm form) {
  return few_bit_header_bytes(form) + size_t{128} * form.bits;
}

// Rows of activations, rounded: x[r, i] = scale[r, i / 32] * code[r, i].
struct RoundedRows {
  const int8_t* codes = nullptr;  // [rows][pairs * 64]
  const float* scales = nullptr;  // [rows][pairs * 2]
  const int32_t* starts =
      nullptr;  // [rows][pairs * 2]: what products begin with: -128 or -8 times the sum of codes
  const float* sums = nullptr;  // [rows][pairs * 2]: of the rounded inputs of a block
  int pairs = 0;
};

struct FewBitProduct {
  FewBitForm form;
  const std::byte* panels = nullptr;  // records [panels][pairs]
  int num_panels = 0;
  RoundedRows x;
  int rows = 0;
  float* y = nullptr;  // first row's first output of the first panel
  size_t y_stride = 0;
  int outputs = 0;              // that are real, of all panels together
  const float* bias = nullptr;  // of these outputs; null: none
  bool accumulate = false;      // y += instead of y =
};

namespace simd {

// One row of RoundedRows out of `in` values: pairs * 64 codes, pairs * 2 scales, starts and sums.
void round_row(const float* x, int in, int pairs, int bits, int8_t* codes, float* scales, int32_t* starts,
               float* sums);

// A row's outputs do not depend on how many rows there are.
void few_bit_product(const FewBitProduct& product);

}  // namespace simd
}  // namespace lowkey::kernels
