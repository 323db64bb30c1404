#include "kernels/cuda/gemm.h"

#include "kernels/page/dtype.h"

namespace lowkey::kernels::cuda {
namespace {

class PlainGemm final : public Gemm {
 public:
  explicit PlainGemm(cudaStream_t stream) : stream_(stream) {}

  void multiply(const GemmShape& shape, const void* x, const void* w, float* y) override {
    emulation::enqueue(stream_, [=] {
      for (int r = 0; r < shape.rows; ++r) {
        for (int o = 0; o < shape.out; ++o) {
          float& target = y[int64_t{r} * shape.out + o];
          double sum = shape.accumulate ? target : 0.0f;
          for (int i = 0; i < shape.in; ++i)
            sum += double{load_element(x, shape.dtype, size_t(r) * shape.in + i)} *
                   load_element(w, shape.dtype, size_t(o) * shape.in + i);
          target = static_cast<float>(sum);
        }
      }
    });
  }

 private:
  cudaStream_t stream_;
};

}  // namespace

Result<std::unique_ptr<Gemm>> Gemm::create(cudaStream_t stream) {
  return std::unique_ptr<Gemm>(std::make_unique<PlainGemm>(stream));
}

}  // namespace lowkey::kernels::cuda
