// Kernels that take a block or more for every row, and write what products read.
#include "kernels/cuda/elementwise_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_math.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kThreadColumns = 4;  // of a row, apart by all threads

template <class T>
__device__ T rounded(float x);
template <>
__device__ __forceinline__ float rounded<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ uint16_t rounded<uint16_t>(float x) {
  return to_bf16(x);
}

// Grid: (rows). The row is read twice; the second time from the caches.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm(const float* x, const float* weight, float epsilon, int cols, int stride, T* y) {
  LOWKEY_SHARED(float, scratch);
  x += int64_t{blockIdx.x} * cols;
  y += int64_t{blockIdx.x} * stride;
  const float scale = row_scale(x, cols, epsilon, scratch);
  for (int i = threadIdx.x; i < stride; i += kRowThreads)
    y[i] = i < cols ? rounded<T>(x[i] * scale * weight[i]) : T{};
}

// Grid: (rows, parts of the columns).
template <class T>
__global__ void convert(const float* x, int cols, int stride, T* y) {
  x += int64_t{blockIdx.x} * cols;
  y += int64_t{blockIdx.x} * stride;
#pragma unroll
  for (int c = 0; c < kThreadColumns; ++c) {
    const int i = (blockIdx.y * kThreadColumns + c) * kThreads + threadIdx.x;
    if (i < stride) y[i] = i < cols ? rounded<T>(x[i]) : T{};
  }
}

template <class T, Gate kGate>
__global__ void gated(const float* gate_up, const float* bias, int cols, int stride, T* y) {
  gate_up += int64_t{blockIdx.x} * 2 * cols;
  y += int64_t{blockIdx.x} * stride;
#pragma unroll
  for (int c = 0; c < kThreadColumns; ++c) {
    const int i = (blockIdx.y * kThreadColumns + c) * kThreads + threadIdx.x;
    if (i >= stride) continue;
    if (i >= cols) {
      y[i] = T{};
      continue;
    }
    float gate = gate_up[i], up = gate_up[cols + i];
    if (bias != nullptr) gate += bias[i], up += bias[cols + i];
    y[i] = rounded<T>(gated_value<kGate>(gate, up));
  }
}

LaunchShape by_columns(const Operand& y) {
  return {dim3(y.rows, ceil_div(y.stride, kThreads * kThreadColumns)), dim3(kThreads)};
}

// run(pointer to y's elements)
template <class Run>
void with_type(const Operand& y, const Run& run) {
  y.dtype == DType::kF32 ? run(static_cast<float*>(y.data)) : run(static_cast<uint16_t*>(y.data));
}

}  // namespace

void launch_convert(cudaStream_t stream, const float* x, const Operand& y) {
  with_type(y, [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    launch(convert<T>, by_columns(y), stream, x, y.cols, y.stride, data);
  });
}

void launch_rms_norm(cudaStream_t stream, const float* x, const float* weight, float epsilon,
                     const Operand& y) {
  with_type(y, [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    launch(rms_norm<T>, {dim3(y.rows), dim3(kRowThreads), kRowWarps * sizeof(float)}, stream, x, weight,
           epsilon, y.cols, y.stride, data);
  });
}

void launch_gated(cudaStream_t stream, Gate gate, const float* gate_up, const float* bias, const Operand& y) {
  with_type(y, [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    const auto kernel = gate == Gate::kSilu ? gated<T, Gate::kSilu> : gated<T, Gate::kGelu>;
    launch(kernel, by_columns(y), stream, gate_up, bias, y.cols, y.stride, data);
  });
}

}  // namespace lowkey::kernels::cuda
