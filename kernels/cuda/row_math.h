// What fused and plain kernels compute of a row, in one order: their results are the same bits.
#pragma once

#include "kernels/cuda/gate.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {

inline constexpr int kRowThreads = 512;  // of a block that norms whole rows
inline constexpr int kRowWarps = kRowThreads / kWarpSize;

__device__ __forceinline__ float norm_scale(float squares, int cols, float epsilon) {
  return 1.0f / sqrtf(squares / static_cast<float>(cols) + epsilon);
}

// RMSNorm's factor of x [cols]; all kRowThreads threads call it. `scratch`: [kRowWarps]; who writes it next
// waits for the block.
__device__ __forceinline__ float row_scale(const float* x, int cols, float epsilon, float* scratch) {
  float sum = 0;
  for (int i = threadIdx.x; i < cols; i += kRowThreads) sum = fmaf(x[i], x[i], sum);
  sum = sum_over(sum);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < kRowWarps; ++i) sum += scratch[i];
  return norm_scale(sum, cols, epsilon);
}

// The same of a row of at most kRowThreads by one warp; read(i): its element i.
template <class Read>
__device__ __forceinline__ float short_row_scale(int cols, float epsilon, const Read& read) {
  float sum = 0;
  for (int first = 0; first < cols; first += kWarpSize) {
    const int i = first + static_cast<int>(threadIdx.x) % kWarpSize;
    const float x = i < cols ? read(i) : 0.0f;
    sum += sum_over(x * x);
  }
  return norm_scale(sum, cols, epsilon);
}

// Activation(gate) * up.
template <Gate kGate>
__device__ __forceinline__ float gated_value(float gate, float up) {
  if (kGate == Gate::kSilu) return gate / (1.0f + expf(-gate)) * up;
  const float inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
  return 0.5f * gate * (1.0f + tanhf(inner)) * up;
}

}  // namespace lowkey::kernels::cuda
