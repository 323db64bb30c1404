// The end of slabs' way to a device: pieces that arrived one behind the other go where they belong.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace lowkey::kernels::cuda {

inline constexpr int kMostLandings = 240;        // as many as a launch takes along
inline constexpr size_t kLandingAlignment = 16;  // of addresses and sizes

struct Landings {
  std::byte* to[kMostLandings];
  uint32_t ends[kMostLandings];  // where each one ends in what arrived, in units of kLandingAlignment
  int count;
};

// REQUIRES: 1 <= count <= kMostLandings.
void launch_land(cudaStream_t stream, const std::byte* arrived, const Landings& landings);

}  // namespace lowkey::kernels::cuda
