// Heads between the product that makes them and attention: bias, norm, rotation, and their places, at once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lowkey::kernels::cuda {

// Heads of one kind: those of q, of k, of v.
struct HeadPart {
  float* to = nullptr;  // [rows][heads * head_dim]; may be where they come from; null: they stay as they are
  int heads = 0;
  const float* norm = nullptr;  // [head_dim] (RMSNorm of every head); null: none
  bool rotated = false;
};

struct HeadsView {
  const float* from = nullptr;  // [rows][all parts' heads * head_dim]
  const float* bias = nullptr;  // of these columns; null: none
  int rows = 0, head_dim = 0;
  float epsilon = 0;
  HeadPart q, k, v;
  // Pairs (i, i + half) of a head are turned by positions[row] * inv_freq[i].
  const float* inv_freq = nullptr;
  const int32_t* positions = nullptr;
  int half = 0;
  float factor = 1;
};

// REQUIRES: head_dim <= kRowThreads where a part is normed (row_math.h).
void launch_place_heads(cudaStream_t stream, const HeadsView& view);

}  // namespace lowkey::kernels::cuda
