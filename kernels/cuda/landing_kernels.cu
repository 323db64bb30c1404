#include "kernels/cuda/landing_kernels.h"

#include "kernels/cuda/launch.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 4;  // 16-byte loads of a thread in flight
constexpr uint32_t kTile = kThreads * kLoads;
constexpr int kBlocks = 64;  // 1 MB in flight: half of the memory's bandwidth, on half of the multiprocessors

// The piece that unit `at` is of.
__device__ int piece_of(const Landings& landings, uint32_t at) {
  int low = 0, high = landings.count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (landings.ends[middle] > at) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Grid: some blocks, which take tiles in turn.
__global__ void land(const __grid_constant__ Landings landings, const uint4* arrived) {
  const uint32_t units = landings.ends[landings.count - 1];
  for (uint32_t tile = blockIdx.x * kTile; tile < units; tile += gridDim.x * kTile) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const uint32_t at = tile + l * kThreads + threadIdx.x;
      if (at < units) loaded[l] = arrived[at];
    }
    int piece = piece_of(landings, tile + threadIdx.x);
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const uint32_t at = tile + l * kThreads + threadIdx.x;
      if (at >= units) break;
      while (landings.ends[piece] <= at) ++piece;
      const uint32_t begin = piece == 0 ? 0 : landings.ends[piece - 1];
      reinterpret_cast<uint4*>(landings.to[piece])[at - begin] = loaded[l];
    }
  }
}

}  // namespace

void launch_land(cudaStream_t stream, const std::byte* arrived, const Landings& landings) {
  const int tiles = ceil_div(static_cast<int>(landings.ends[landings.count - 1]), static_cast<int>(kTile));
  launch(land, {dim3(min(tiles, kBlocks)), dim3(kThreads)}, stream, landings,
         reinterpret_cast<const uint4*>(arrived));
}

}  // namespace lowkey::kernels::cuda
