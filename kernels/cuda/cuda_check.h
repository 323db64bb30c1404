// Calls of CUDA's that fail only when the device is lost or our own arguments are wrong: they abort with the
// call, its place and CUDA's words. Of its own, because the device compiler cannot read what base/check.h
// needs.
#pragma once

#include <cuda_runtime.h>

namespace lowkey::kernels::cuda {

[[noreturn]] void cuda_failed(cudaError_t error, const char* call, const char* file, int line);

#define LOWKEY_CUDA_CHECK(call)                                                \
  do {                                                                         \
    if (const cudaError_t error_ = (call); error_ != cudaSuccess) [[unlikely]] \
      ::lowkey::kernels::cuda::cuda_failed(error_, #call, __FILE__, __LINE__); \
  } while (false)

}  // namespace lowkey::kernels::cuda
