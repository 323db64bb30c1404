#include "kernels/cuda/elementwise_kernels.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

__device__ int64_t thread_of_grid() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ int64_t threads_of_grid() {
  return int64_t{gridDim.x} * blockDim.x;
}

// Enough threads for all elements, few enough blocks that each has some.
LaunchShape over(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return {dim3(static_cast<unsigned>(std::min<int64_t>(blocks, 132 * 16))), dim3(kThreads)};
}

// One block per row. The row is read twice; the second time from the caches.
__global__ void rms_norm(const float* x, const float* weight, float epsilon, int cols, float* y) {
  LOWKEY_SHARED(float, sums);
  x += int64_t{blockIdx.x} * cols;
  y += int64_t{blockIdx.x} * cols;
  float sum = 0;
  for (int i = threadIdx.x; i < cols; i += kThreads) sum += x[i] * x[i];
  sum = sum_over(sum);
  if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += sums[i];
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(cols) + epsilon);
  for (int i = threadIdx.x; i < cols; i += kThreads) y[i] = x[i] * scale * weight[i];
}

// One block per row. Angles are reduced to one turn in f64: positions reach the hundred thousands.
__global__ void rope(const float* inv_freq, int half, int head_dim, float factor, const int32_t* positions,
                     int cols, float* x) {
  LOWKEY_SHARED(float, turns);  // cosines, then sines
  const double position = positions[blockIdx.x];
  x += int64_t{blockIdx.x} * cols;
  for (int i = threadIdx.x; i < half; i += kThreads) {
    constexpr double kTurn = 6.283185307179586;
    const double angle = double{inv_freq[i]} * position;
    const auto reduced = static_cast<float>(angle - kTurn * rint(angle * (1 / kTurn)));
    turns[i] = cosf(reduced) * factor;
    turns[half + i] = sinf(reduced) * factor;
  }
  __syncthreads();
  const int pairs = cols / head_dim * half;
  for (int p = threadIdx.x; p < pairs; p += kThreads) {
    float* head = x + p / half * head_dim;
    const int i = p % half;
    const float a = head[i], b = head[i + half], c = turns[i], s = turns[half + i];
    head[i] = a * c - b * s;
    head[i + half] = b * c + a * s;
  }
}

enum class Gate { kSilu, kGelu };

template <Gate kGate>
__global__ void gated(const float* gate_up, int rows, int cols, float* y) {
  const int64_t count = int64_t{rows} * cols;
  for (int64_t i = thread_of_grid(); i < count; i += threads_of_grid()) {
    const float* row = gate_up + i / cols * 2 * cols;
    const float gate = row[i % cols], up = row[i % cols + cols];
    if (kGate == Gate::kSilu) {
      y[i] = gate / (1.0f + expf(-gate)) * up;
    } else {
      const float inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
      y[i] = 0.5f * gate * (1.0f + tanhf(inner)) * up;
    }
  }
}

__global__ void soft_cap(float cap, int64_t count, float* x) {
  for (int64_t i = thread_of_grid(); i < count; i += threads_of_grid()) x[i] = cap * tanhf(x[i] / cap);
}

__global__ void add(const float* x, int64_t count, float* y) {
  for (int64_t i = thread_of_grid(); i < count; i += threads_of_grid()) y[i] += x[i];
}

__global__ void gather_rows(const float* x, const int32_t* rows, int count, int cols, float* y) {
  for (int64_t i = thread_of_grid(); i < int64_t{count} * cols; i += threads_of_grid())
    y[i] = x[int64_t{rows[i / cols]} * cols + i % cols];
}

__global__ void copy_columns(const float* x, int x_cols, int first, int rows, int cols, float* y) {
  for (int64_t i = thread_of_grid(); i < int64_t{rows} * cols; i += threads_of_grid())
    y[i] = x[i / cols * x_cols + first + i % cols];
}

template <class T>
__global__ void embed(const T* table, int table_rows, int stride, const int32_t* ids, int first_row,
                      float scale, int count, int cols, float* y) {
  for (int64_t i = thread_of_grid(); i < int64_t{count} * cols; i += threads_of_grid()) {
    const int64_t row = int64_t{ids[i / cols]} - first_row;
    if (row < 0 || row >= table_rows) {
      y[i] = 0.0f;
      continue;
    }
    const T element = table[row * stride + i % cols];
    y[i] = scale * (sizeof(T) == 4 ? static_cast<float>(element) : from_bf16(static_cast<uint32_t>(element)));
  }
}

__global__ void round_bf16(const float* x, int rows, int cols, int stride, uint16_t* y) {
  for (int64_t i = thread_of_grid(); i < int64_t{rows} * stride; i += threads_of_grid())
    y[i] = i % stride < cols ? to_bf16(x[i / stride * cols + i % stride]) : 0;
}

__global__ void pad_rows(const float* x, int rows, int cols, int stride, float* y) {
  for (int64_t i = thread_of_grid(); i < int64_t{rows} * stride; i += threads_of_grid())
    y[i] = i % stride < cols ? x[i / stride * cols + i % stride] : 0.0f;
}

__global__ void add_bias(const float* bias, int rows, int cols, float* y) {
  for (int64_t i = thread_of_grid(); i < int64_t{rows} * cols; i += threads_of_grid()) y[i] += bias[i % cols];
}

}  // namespace

void launch_rms_norm(cudaStream_t stream, const float* x, const float* weight, float epsilon, int rows,
                     int cols, float* y) {
  launch(rms_norm, {dim3(rows), dim3(kThreads), kWarps * sizeof(float)}, stream, x, weight, epsilon, cols, y);
}

void launch_rope(cudaStream_t stream, const float* inv_freq, int half, int head_dim, float factor,
                 const int32_t* positions, int rows, int cols, float* x) {
  launch(rope, {dim3(rows), dim3(kThreads), 2 * half * sizeof(float)}, stream, inv_freq, half, head_dim,
         factor, positions, cols, x);
}

void launch_silu_mul(cudaStream_t stream, const float* gate_up, int rows, int cols, float* y) {
  launch(gated<Gate::kSilu>, over(int64_t{rows} * cols), stream, gate_up, rows, cols, y);
}

void launch_gelu_mul(cudaStream_t stream, const float* gate_up, int rows, int cols, float* y) {
  launch(gated<Gate::kGelu>, over(int64_t{rows} * cols), stream, gate_up, rows, cols, y);
}

void launch_soft_cap(cudaStream_t stream, float cap, int64_t count, float* x) {
  launch(soft_cap, over(count), stream, cap, count, x);
}

void launch_add(cudaStream_t stream, const float* x, int64_t count, float* y) {
  launch(add, over(count), stream, x, count, y);
}

void launch_gather_rows(cudaStream_t stream, const float* x, const int32_t* rows, int count, int cols,
                        float* y) {
  launch(gather_rows, over(int64_t{count} * cols), stream, x, rows, count, cols, y);
}

void launch_copy_columns(cudaStream_t stream, const float* x, int x_cols, int first, int rows, int cols,
                         float* y) {
  launch(copy_columns, over(int64_t{rows} * cols), stream, x, x_cols, first, rows, cols, y);
}

void launch_embed(cudaStream_t stream, const void* table, DType dtype, int table_rows, int stride,
                  const int32_t* ids, int first_row, float scale, int count, int cols, float* y) {
  const LaunchShape shape = over(int64_t{count} * cols);
  if (dtype == DType::kF32) {
    launch(embed<float>, shape, stream, static_cast<const float*>(table), table_rows, stride, ids, first_row,
           scale, count, cols, y);
  } else {
    launch(embed<uint16_t>, shape, stream, static_cast<const uint16_t*>(table), table_rows, stride, ids,
           first_row, scale, count, cols, y);
  }
}

void launch_round_bf16(cudaStream_t stream, const float* x, int rows, int cols, int stride, uint16_t* y) {
  launch(round_bf16, over(int64_t{rows} * stride), stream, x, rows, cols, stride, y);
}

void launch_pad_rows(cudaStream_t stream, const float* x, int rows, int cols, int stride, float* y) {
  launch(pad_rows, over(int64_t{rows} * stride), stream, x, rows, cols, stride, y);
}

void launch_add_bias(cudaStream_t stream, const float* bias, int rows, int cols, float* y) {
  launch(add_bias, over(int64_t{rows} * cols), stream, bias, rows, cols, y);
}

}  // namespace lowkey::kernels::cuda
