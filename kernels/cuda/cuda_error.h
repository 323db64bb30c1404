// Every call of CUDA's is checked. Where the caller can go on without a device or with less memory, errors
// are values; inside a step they mean a lost device, and abort (cuda_check.h).
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "base/result.h"
#include "kernels/cuda/cuda_check.h"

namespace lowkey::kernels::cuda {

// kUnavailable without a usable driver or device, kResourceExhausted without memory, else kInternal.
Status cuda_status(cudaError_t error, const char* call, const char* file, int line);

// "3.2 GiB asked for, 1.0 of 139.8 GiB free" for messages.
std::string memory_report(size_t asked_bytes);

#define LOWKEY_CUDA_STATUS(call) ::lowkey::kernels::cuda::cuda_status((call), #call, __FILE__, __LINE__)
#define LOWKEY_CUDA_TRY(call) LOWKEY_TRY(LOWKEY_CUDA_STATUS(call))

}  // namespace lowkey::kernels::cuda
