// Reads memory and does next to nothing with it: the bandwidth that a kernel of ours can have on this device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace lowkey::testing {

// Sums `bytes` (a multiple of 16) from `blocks` blocks; `result` keeps the compiler from leaving it out.
void launch_read(cudaStream_t stream, const void* memory, size_t bytes, int blocks, uint32_t* result);

}  // namespace lowkey::testing
