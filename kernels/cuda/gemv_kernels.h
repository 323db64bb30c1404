// y = W x for one or two rows of x: decoding reads every weight once, so the floor is bytes over bandwidth.
// What stands before and behind such a product is done in it: as kernels of their own RMSNorm and a gate
// would be one block's work, or a few microseconds each of a device that waits.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/gate.h"
#include "kernels/page/page_format.h"

namespace lowkey::kernels::cuda {

inline constexpr int kMaxGemvRows = 2;

// [out][stride] of f32 or bf16, 16-byte aligned, stride % 8 == 0, zeros from `in` on.
struct GemvWeight {
  const void* data = nullptr;
  int out = 0, in = 0, stride = 0;
};

// [rows][in], rounded to the weight's dtype.
struct GemvInput {
  const float* x = nullptr;
  int rows = 0;
  const float* norm = nullptr;  // [in]: x is normed first (RMSNorm); null: it is not
  float epsilon = 0;
};

struct GemvOutput {
  const float* bias = nullptr;  // [out]; may be null
  // The weight's halves are gates and what they let through: y [rows][out / 2]. kNone: y [rows][out].
  Gate gate = Gate::kNone;
  bool accumulate = false;  // y += instead; not of gates
  float* y = nullptr;
};

// REQUIRES: 1 <= rows <= kMaxGemvRows.
void launch_gemv(cudaStream_t stream, const GemvWeight& weight, DType dtype, const GemvInput& input,
                 const GemvOutput& output, int multiprocessors);

}  // namespace lowkey::kernels::cuda
