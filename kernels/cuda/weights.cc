#include "kernels/cuda/weights.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cuda/gemv_kernels.h"
#include "kernels/page/dtype.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kRowElements = 8;                    // rows are whole 16-byte loads of bf16
constexpr size_t kStagingBytes = size_t{8} << 20;  // long enough for the full rate of a copy
constexpr int kStagings = 2;                       // one is filled while the other is copied
// Up to kMaxGemvRows rows the weights' bytes are all that counts, and one warp per output reads them at full
// rate; beyond, tensor cores are needed to keep up with the arithmetic.
GemvWeight gemv_weight(const CudaLinear& weight) {
  return {weight.weight(), weight.out_features(), weight.in_features(), weight.stride()};
}

void check_product(const CudaLinear& weight, const Tensor& x, int rows, int cols) {
  LOWKEY_CHECK(x.cols == weight.in_features() && cols == weight.out_features() && x.rows == rows,
               "linear [{}, {}] on [{}, {}] -> [{}, {}]", weight.out_features(), weight.in_features(), x.rows,
               x.cols, rows, cols);
}

void convert_row(const void* from, DType from_dtype, size_t first, std::byte* to, DType to_dtype, int count) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, static_cast<const std::byte*>(from) + first * dtype_bytes(from_dtype),
                count * dtype_bytes(to_dtype));
    return;
  }
  for (int i = 0; i < count; ++i) store_element(to, to_dtype, i, load_element(from, from_dtype, first + i));
}

}  // namespace

Result<Weights> Weights::create(std::shared_ptr<DevicePool> pool, cudaStream_t stream, int multiprocessors) {
  LOWKEY_ASSIGN(gemm, Gemm::create(stream));
  Weights weights(std::move(pool), stream, std::move(gemm), multiprocessors);
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

Operand Weights::operand(const CudaLinear& weight, int rows) {
  const size_t bytes = size_t(rows) * weight.stride() * dtype_bytes(weight.dtype());
  return {operand_.get<std::byte>(bytes), weight.dtype(), rows, weight.in_features(), weight.stride()};
}

void Weights::multiply_operand(const CudaLinear& weight, const void* input, const float* bias,
                               bool accumulate, const Tensor& y) {
  const GemmShape shape{weight.dtype(), y.rows, weight.out_features(), weight.stride(), accumulate};
  gemm_->multiply(shape, input, weight.weight(), y.as<float>());
  if (bias != nullptr) launch_add_bias(stream_, bias, y.rows, y.cols, y.as<float>());
}

void Weights::multiply(const CudaLinear& weight, const Tensor& x, const float* bias, bool accumulate,
                       const Tensor& y) {
  check_product(weight, x, y.rows, y.cols);
  if (x.rows <= kMaxGemvRows) {
    launch_gemv(stream_, gemv_weight(weight), weight.dtype(), {.x = x.as<float>(), .rows = x.rows},
                {.bias = bias, .accumulate = accumulate, .y = y.as<float>()}, multiprocessors_);
    return;
  }
  const void* input = x.data;
  if (weight.dtype() == DType::kBf16 || weight.stride() != weight.in_features()) {
    const Operand converted = operand(weight, x.rows);
    launch_convert(stream_, x.as<float>(), converted);
    input = converted.data;
  }
  multiply_operand(weight, input, bias, accumulate, y);
}

void Weights::multiply_normed(const CudaLinear& weight, const Tensor& x, const float* norm, float epsilon,
                              const Tensor& y) {
  check_product(weight, x, y.rows, y.cols);
  if (x.rows <= kMaxGemvRows) {
    launch_gemv(stream_, gemv_weight(weight), weight.dtype(),
                {.x = x.as<float>(), .rows = x.rows, .norm = norm, .epsilon = epsilon}, {.y = y.as<float>()},
                multiprocessors_);
    return;
  }
  const Operand normed = operand(weight, x.rows);
  launch_rms_norm(stream_, x.as<float>(), norm, epsilon, normed);
  multiply_operand(weight, normed.data, nullptr, false, y);
}

void Weights::gated_mlp(const MlpStep& step) {
  const auto& gate_up = static_cast<const CudaLinear&>(*step.gate_up);
  const auto& down = static_cast<const CudaLinear&>(*step.down);
  const Gate gate = step.activation == Activation::kSilu ? Gate::kSilu : Gate::kGelu;
  if (step.x.rows <= kMaxGemvRows) {
    check_product(gate_up, step.x, step.hidden.rows, 2 * step.hidden.cols);
    launch_gemv(stream_, gemv_weight(gate_up), gate_up.dtype(),
                {.x = step.x.as<float>(), .rows = step.x.rows, .norm = step.norm, .epsilon = step.epsilon},
                {.bias = step.gate_up_bias, .gate = gate, .y = step.hidden.as<float>()}, multiprocessors_);
    return multiply(down, step.hidden, step.down_bias, step.accumulate, step.y);
  }
  multiply_normed(gate_up, step.x, step.norm, step.epsilon, step.both);
  check_product(down, step.hidden, step.y.rows, step.y.cols);
  const Operand hidden = operand(down, step.x.rows);
  launch_gated(stream_, gate, step.both.as<float>(), step.gate_up_bias, hidden);
  multiply_operand(down, hidden.data, step.down_bias, step.accumulate, step.y);
}

}  // namespace lowkey::kernels::cuda
