// The Backend of one CUDA device: everything is ordered on one stream.
#pragma once

#include <memory>

#include "kernels/ops/backend.h"

namespace lowkey::kernels::cuda {

// Errors: kUnavailable where this device cannot be used, kResourceExhausted.
Result<std::unique_ptr<Backend>> make_cuda_backend(int device, DType dtype);

}  // namespace lowkey::kernels::cuda
