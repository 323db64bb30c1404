#include "kernels/cuda/elementwise_kernels.h"

#include <algorithm>

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kThreads = 256;

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

__global__ void add_bias(const float* bias, int rows, int cols, float* y) {
  for (int64_t i = thread_of_grid(); i < int64_t{rows} * cols; i += threads_of_grid()) y[i] += bias[i % cols];
}

}  // namespace

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

void launch_add_bias(cudaStream_t stream, const float* bias, int rows, int cols, float* y) {
  launch(add_bias, over(int64_t{rows} * cols), stream, bias, rows, cols, y);
}

}  // namespace lowkey::kernels::cuda
