#include "tests/gpu/read_kernel.h"

#include "kernels/cuda/launch.h"

namespace lowkey::testing {
namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 8;  // 16-byte loads of a thread in flight

__global__ void read_all(const uint4* memory, size_t count, uint32_t* result) {
  const size_t stride = size_t{gridDim.x} * kThreads;
  uint32_t sum = 0;
  size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kLoads - 1) * stride < count; i += kLoads * stride) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int l = 0; l < kLoads; ++l) loaded[l] = memory[i + l * stride];
#pragma unroll
    for (int l = 0; l < kLoads; ++l) sum += loaded[l].x ^ loaded[l].y ^ loaded[l].z ^ loaded[l].w;
  }
  for (; i < count; i += stride) sum += memory[i].x ^ memory[i].w;
  if (sum == 0x12345678u) *result = sum;
}

}  // namespace

void launch_read(cudaStream_t stream, const void* memory, size_t bytes, int blocks, uint32_t* result) {
  kernels::cuda::launch(read_all, {dim3(blocks), dim3(kThreads)}, stream, static_cast<const uint4*>(memory),
                        bytes / 16, result);
}

}  // namespace lowkey::testing
