#include "kernels/cuda/weights.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cuda/elementwise_kernels.h"
#include "kernels/cuda/gemv_kernels.h"
#include "kernels/page/dtype.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kRowElements = 8;                    // rows are whole 16-byte loads of bf16
constexpr size_t kStagingBytes = size_t{8} << 20;  // long enough for the full rate of a copy
constexpr int kStagings = 2;                       // one is filled while the other is copied
// Up to this many rows the weights' bytes are all that counts, and one warp per output reads them at full
// rate; beyond, tensor cores are needed to keep up with the arithmetic.
constexpr int kGemvRows = 2;

void convert_row(const void* from, DType from_dtype, size_t first, std::byte* to, DType to_dtype, int count) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, static_cast<const std::byte*>(from) + first * dtype_bytes(from_dtype),
                count * dtype_bytes(to_dtype));
    return;
  }
  for (int i = 0; i < count; ++i) store_element(to, to_dtype, i, load_element(from, from_dtype, first + i));
}

}  // namespace

Result<Weights> Weights::create(std::shared_ptr<DevicePool> pool, cudaStream_t stream) {
  LOWKEY_ASSIGN(gemm, Gemm::create(stream));
  Weights weights(std::move(pool), stream, std::move(gemm));
  for (int i = 0; i < kStagings; ++i) {
    LOWKEY_ASSIGN(event, Event::create());
    LOWKEY_ASSIGN(memory, PinnedBuffer::create(kStagingBytes));
    weights.staging_.push_back({std::move(memory), std::move(event)});
  }
  return weights;
}

Result<std::unique_ptr<Linear>> Weights::pack(const void* weight, DType from, DType to, int out, int in,
                                              int64_t stride) {
  const int row = (in + kRowElements - 1) / kRowElements * kRowElements;
  const size_t row_bytes = row * dtype_bytes(to);
  LOWKEY_CHECK(row_bytes <= kStagingBytes, "weight with rows of {} elements", in);
  LOWKEY_ASSIGN(buffer, pool_->allocate(row_bytes * out));
  const int part = static_cast<int>(kStagingBytes / row_bytes);
  for (int first = 0, turn = 0; first < out; first += part, turn = (turn + 1) % kStagings) {
    const Staging& staging = staging_[turn];
    LOWKEY_TRY(staging.copied.synchronize());
    const int rows = std::min(part, out - first);
    std::byte* target = const_cast<PinnedBuffer&>(staging.memory).data();
    for (int r = 0; r < rows; ++r, target += row_bytes) {
      convert_row(weight, from, static_cast<size_t>((first + r) * stride), target, to, in);
      std::memset(target + in * dtype_bytes(to), 0, row_bytes - in * dtype_bytes(to));
    }
    target -= rows * row_bytes;
    LOWKEY_CUDA_TRY(cudaMemcpyAsync(buffer.data() + first * row_bytes, target, rows * row_bytes,
                                    cudaMemcpyHostToDevice, stream_));
    staging.copied.record(stream_);
  }
  LOWKEY_CUDA_TRY(cudaStreamSynchronize(stream_));
  return std::unique_ptr<Linear>(std::make_unique<CudaLinear>(std::move(buffer), to, out, in, row));
}

void Weights::multiply(const CudaLinear& weight, const Tensor& x, const float* bias, bool accumulate,
                       const Tensor& y) {
  const int in = weight.in_features(), out = weight.out_features(), stride = weight.stride();
  LOWKEY_CHECK(x.cols == in && y.cols == out && x.rows == y.rows, "linear [{}, {}] on [{}, {}] -> [{}, {}]",
               out, in, x.rows, x.cols, y.rows, y.cols);
  if (x.rows <= kGemvRows) {
    launch_gemv(stream_, weight.weight(), weight.dtype(), out, in, stride, x.as<float>(), x.rows, bias,
                accumulate, y.as<float>());
    return;
  }
  const GemmShape shape{weight.dtype(), x.rows, out, stride, accumulate};
  const void* input = x.data;
  if (weight.dtype() == DType::kBf16) {
    auto* rounded = rounded_.get<uint16_t>(size_t(x.rows) * stride);
    launch_round_bf16(stream_, x.as<float>(), x.rows, in, stride, rounded);
    input = rounded;
  } else if (stride != in) {
    auto* padded = rounded_.get<float>(size_t(x.rows) * stride);
    launch_pad_rows(stream_, x.as<float>(), x.rows, in, stride, padded);
    input = padded;
  }
  gemm_->multiply(shape, input, weight.weight(), y.as<float>());
  if (bias != nullptr) launch_add_bias(stream_, bias, y.rows, y.cols, y.as<float>());
}

}  // namespace lowkey::kernels::cuda
