// y = W x for a few rows of x: decoding reads every weight once, so the floor is bytes over bandwidth.
#pragma once

#include <cuda_runtime.h>

#include "kernels/page/page_format.h"

namespace lowkey::kernels::cuda {

inline constexpr int kMaxGemvRows = 8;

// y[rows][out] (+)= x[rows][in] W^T + bias. `weight`: [out][stride] of `dtype` (f32 or bf16), 16-byte
// aligned, stride % 8 == 0, zeros from `in` on. x is rounded to `dtype`. `bias` may be null. REQUIRES: 1 <=
// rows <= kMaxGemvRows.
void launch_gemv(cudaStream_t stream, const void* weight, DType dtype, int out, int in, int stride,
                 const float* x, int rows, const float* bias, bool accumulate, float* y);

}  // namespace lowkey::kernels::cuda
