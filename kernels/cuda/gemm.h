// Matrix products of many rows: cuBLASLt on a device; a plain loop in the host-side emulation.
#pragma once

#include <memory>

#include "kernels/cuda/stream.h"
#include "kernels/page/page_format.h"

namespace lowkey::kernels::cuda {

// y[rows][out] = x[rows][in] w[out][in]^T (+ y). Sums are f32 (of bf16 or f32 products; f32 without TF32).
struct GemmShape {
  DType dtype = DType::kBf16;  // of x and w
  int rows = 0, out = 0, in = 0;
  bool accumulate = false;
  auto operator<=>(const GemmShape&) const = default;
};

class Gemm {
 public:
  static Result<std::unique_ptr<Gemm>> create(cudaStream_t stream);
  virtual ~Gemm() = default;
  // x and w contiguous; the faster the further they are aligned, up to 256 bytes.
  virtual void multiply(const GemmShape& shape, const void* x, const void* w, float* y) = 0;
};

}  // namespace lowkey::kernels::cuda
