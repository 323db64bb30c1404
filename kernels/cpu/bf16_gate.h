// The gate of a gated MLP between two products of bf16 pairs: from f32 sums of a panel each to bf16 inputs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowkey::kernels {

// y = activation(gate + gate_bias) * (up + up_bias), to about 2^-13 before it is rounded. [rows][kPanelOut]
struct GatedBlock {
  const float* gate = nullptr;
  const float* up = nullptr;
  ptrdiff_t stride = 0;              // of gate and of up
  const float* gate_bias = nullptr;  // null: none
  const float* up_bias = nullptr;
  int rows = 0;
  bool gelu = false;  // its tanh form; else SiLU
  uint16_t* y = nullptr;
  ptrdiff_t y_stride = 0;
};
// REQUIRES: has_bf16_pairs().
void gate_block(const GatedBlock& block);

}  // namespace lowkey::kernels
