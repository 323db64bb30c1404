// The operations of Backend that touch each element once: launches on a stream. All matrices are f32,
// row-major, contiguous, in device memory unless said otherwise; index arrays are device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/gate.h"
#include "kernels/page/page_format.h"

namespace lowkey::kernels::cuda {

void launch_soft_cap(cudaStream_t stream, float cap, int64_t count, float* x);
void launch_add(cudaStream_t stream, const float* x, int64_t count, float* y);
void launch_gather_rows(cudaStream_t stream, const float* x, const int32_t* rows, int count, int cols,
                        float* y);
// y = columns [first, first + cols) of x [rows][x_cols].
void launch_copy_columns(cudaStream_t stream, const float* x, int x_cols, int first, int rows, int cols,
                         float* y);
// Row ids[i] - first_row of `table` [table_rows][stride] of `dtype`, times scale; zeros outside.
void launch_embed(cudaStream_t stream, const void* table, DType dtype, int table_rows, int stride,
                  const int32_t* ids, int first_row, float scale, int count, int cols, float* y);
// y [rows][cols] += bias.
void launch_add_bias(cudaStream_t stream, const float* bias, int rows, int cols, float* y);

// What products read: `data` [rows][stride] of f32 or bf16, zeros from `cols` on.
struct Operand {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rows = 0, cols = 0, stride = 0;
};
// x [rows][cols] as it is.
void launch_convert(cudaStream_t stream, const float* x, const Operand& y);
// Rows of x normed (RMSNorm). y may be x.
void launch_rms_norm(cudaStream_t stream, const float* x, const float* weight, float epsilon,
                     const Operand& y);
// Activation(gate) * up of gate_up [rows][2 cols] + bias [2 cols], which may be null.
void launch_gated(cudaStream_t stream, Gate gate, const float* gate_up, const float* bias, const Operand& y);

}  // namespace lowkey::kernels::cuda
