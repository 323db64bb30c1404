// y[M, out] = x[M, in] W^T with W in 8 or 4 bits (kernels/ops/few_bit_weights.h), as few_bit_kernels.h
// computes it: x is rounded to 8 bits in blocks of 32. Decoding reads half or a quarter of the bytes of bf16.
//
// As in CpuLinear a row's result does not depend on M: there is one way to compute it.
#pragma once

#include <memory>
#include <vector>

#include "kernels/ops/backend.h"
#include "kernels/ops/few_bit_weights.h"

namespace lowkey::kernels {

class ComputePool;

class FewBitLinear final : public Linear {
 public:
  FewBitLinear(ComputePool& pool, const FewBitMatrix& weight);
  ~FewBitLinear() override;

  int in_features() const override { return in_; }
  int out_features() const override { return out_; }
  size_t packed_bytes() const override { return packed_->size(); }

  void copy_row(int row, float* target) const;  // of W, as f32

  // Rows of x in 8 bits; kept from product to product.
  struct Scratch {
    std::vector<int8_t> codes;
    std::vector<float> scales, sums;
    std::vector<int32_t> starts;
  };
  void multiply(ComputePool& pool, Scratch& scratch, const Tensor& x, const float* bias, bool accumulate,
                const Tensor& y) const;

 private:
  std::byte* record(int panel, int pair) const;
  void pack_panel(const FewBitMatrix& weight, int panel);

  FewBitForm form_;
  int in_, out_;
  int pairs_, panels_;
  std::unique_ptr<Buffer> packed_;
};

}  // namespace lowkey::kernels
