// The operations of Backend that touch each element once: launches on a stream. All matrices are f32,
// row-major, contiguous, in device memory; index arrays are device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/page/page_format.h"

namespace lowkey::kernels::cuda {

void launch_rms_norm(cudaStream_t stream, const float* x, const float* weight, float epsilon, int rows,
                     int cols, float* y);
// Pairs (i, i + half) of every head of `x` [rows][cols] are turned by positions[row] * inv_freq[i].
void launch_rope(cudaStream_t stream, const float* inv_freq, int half, int head_dim, float factor,
                 const int32_t* positions, int rows, int cols, float* x);
// gate_up [rows][2 cols].
void launch_silu_mul(cudaStream_t stream, const float* gate_up, int rows, int cols, float* y);
void launch_gelu_mul(cudaStream_t stream, const float* gate_up, int rows, int cols, float* y);
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
// y [rows][stride], zeros from `cols` on.
void launch_round_bf16(cudaStream_t stream, const float* x, int rows, int cols, int stride, uint16_t* y);
void launch_pad_rows(cudaStream_t stream, const float* x, int rows, int cols, int stride, float* y);
// y [rows][cols] += bias.
void launch_add_bias(cudaStream_t stream, const float* bias, int rows, int cols, float* y);

}  // namespace lowkey::kernels::cuda
