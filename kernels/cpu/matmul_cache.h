// oneDNN matmul primitives, one per (shape, rows, variant), made on first use and kept.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

// The blocked format that oneDNN wants for a weight matrix [in, out]. Blocked formats are separable: element
// (i, o) lies at in_offset[i] + out_offset[o] elements.
struct WeightFormat {
  std::vector<uint32_t> in_offset;   // [in]
  std::vector<uint32_t> out_offset;  // [out]
  size_t bytes = 0;
};

// One matrix product on one thread: y = x W^T, all three dense. (oneDNN 2.6 falls back to its plain loops, a
// hundred times slower, when y has a row stride of its own; bias and sums are the caller's for the same
// simplicity.)
struct MatmulCall {
  int rows = 0;
  int in = 0;
  int out = 0;
  DType dtype = DType::kBf16;  // of x and the weights; y is f32

  auto operator<=>(const MatmulCall&) const = default;
};

class Matmul;

// Owned by the step thread; run() may be called from several threads with distinct `thread` numbers.
class MatmulCache {
 public:
  explicit MatmulCache(int threads);
  ~MatmulCache();

  // Both stay valid as long as the cache.
  const WeightFormat& weight_format(int in, int out, DType dtype);
  Matmul* find(const MatmulCall& call);
  // x [rows, in] of call.dtype, weight in weight_format(), y [rows, out].
  void run(Matmul& matmul, int thread, const void* x, const void* weight, float* y);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lowkey::kernels
