// Weights of the CPU backend's matrix products, y[M, out] = x[M, in] W^T, packed once, straight from the
// source: into panels (kernels/cpu/bf16_panels.h) where the machine has products for them, else into the
// blocked format that oneDNN asks for. For oneDNN W is cut along `out` into slices of about a megabyte; a
// slice is one task of the compute pool and stays in cache while all rows of x pass. Its own threads are off:
// two of its OpenMP teams on shared cores are 45 times slower than one thread.
//
// A row's result does not depend on M (kernels/cpu's tests check it): batch and chunk size cannot change
// tokens.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cpu/bf16_panels.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels {

class ComputePool;
class MatmulCache;
struct WeightFormat;

class CpuLinear final : public Linear {
 public:
  struct Slice {
    int first_out = 0;
    int num_out = 0;
    size_t offset = 0;  // bytes into the packed weights
    const WeightFormat* format = nullptr;
  };

  // Packs `weight` ([out, in] of `dtype`, row stride in elements) into `packed_dtype` (kBf16 or kF32).
  // `panels`: REQUIRES kBf16.
  CpuLinear(ComputePool& pool, MatmulCache& cache, const void* weight, DType dtype, int out, int in,
            int64_t stride, DType packed_dtype, bool panels);
  ~CpuLinear() override;

  int in_features() const override { return in_; }
  int out_features() const override { return out_; }
  size_t packed_bytes() const override { return packed_->size(); }
  DType packed_dtype() const { return packed_dtype_; }
  const std::vector<Slice>& slices() const { return slices_; }
  int max_slice_out() const { return max_slice_out_; }
  std::byte* slice_data(const Slice& slice) const { return packed_->data() + slice.offset; }

  bool has_panels() const { return panel_format_ != nullptr; }
  int num_panels() const { return (out_ + kPanelOut - 1) / kPanelOut; }
  const uint16_t* panel(int index) const {
    return reinterpret_cast<const uint16_t*>(packed_->data()) + index * panel_elements(in_);
  }

  // Row `row` of W as f32: the packed weights also serve as the embedding table.
  void copy_row(int row, float* target) const;

 private:
  void plan_slices(MatmulCache& cache, int threads);
  void pack_slice(const Slice& slice, const void* weight, DType dtype, int64_t stride);

  int in_, out_;
  int max_slice_out_ = 0;
  DType packed_dtype_;
  std::vector<Slice> slices_;
  std::unique_ptr<WeightFormat> panel_format_;  // of any slice; null: not in panels
  std::unique_ptr<Buffer> packed_;
};

}  // namespace lowkey::kernels
