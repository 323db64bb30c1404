// Weights on the device, and products with them.
#pragma once

#include "kernels/cuda/device_pool.h"
#include "kernels/cuda/elementwise_kernels.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels::cuda {

// [out][stride] of the backend's dtype, rows 16-byte aligned; zeros beyond `in`.
class CudaLinear final : public Linear {
 public:
  CudaLinear(DeviceBuffer weight, DType dtype, int out, int in, int stride)
      : weight_(std::move(weight)), dtype_(dtype), out_(out), in_(in), stride_(stride) {}

  int in_features() const override { return in_; }
  int out_features() const override { return out_; }
  size_t packed_bytes() const override { return weight_.size(); }
  const void* weight() const { return weight_.as<void>(); }
  DType dtype() const { return dtype_; }
  int stride() const { return stride_; }

 private:
  DeviceBuffer weight_;
  DType dtype_;
  int out_, in_, stride_;
};

// Rows are normed, gated and rounded where products read them: in the product itself up to two of them, else
// by one kernel that writes its operand.
class Weights {
 public:
  static Result<Weights> create(std::shared_ptr<DevicePool> pool, cudaStream_t stream, int multiprocessors);

  // Converts and copies, part by part, through page-locked memory; complete on return.
  Result<std::unique_ptr<Linear>> pack(const void* weight, DType from, DType to, int out, int in,
                                       int64_t stride);
  // Backend::linear().
  void multiply(const CudaLinear& weight, const Tensor& x, const float* bias, bool accumulate,
                const Tensor& y);
  // The same of x after RMSNorm.
  void multiply_normed(const CudaLinear& weight, const Tensor& x, const float* norm, float epsilon,
                       const Tensor& y);
  // Backend::gated_mlp().
  void gated_mlp(const MlpStep& step);

 private:
  struct Staging {
    PinnedBuffer memory;
    Event copied;
  };
  Weights(std::shared_ptr<DevicePool> pool, cudaStream_t stream, std::unique_ptr<Gemm> gemm,
          int multiprocessors)
      : pool_(std::move(pool)), stream_(stream), gemm_(std::move(gemm)), multiprocessors_(multiprocessors) {}
  // What `rows` rows are for a product with `weight`; until the next one is asked for.
  Operand operand(const CudaLinear& weight, int rows);
  void multiply_operand(const CudaLinear& weight, const void* input, const float* bias, bool accumulate,
                        const Tensor& y);

  std::shared_ptr<DevicePool> pool_;
  cudaStream_t stream_;
  std::unique_ptr<Gemm> gemm_;
  const int multiprocessors_;
  std::vector<Staging> staging_;  // filled in turn
  Scratch operand_{pool_};
};

}  // namespace lowkey::kernels::cuda
