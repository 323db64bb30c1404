// Every operation in plain loops from its formula, sums in float64: the twin that fast backends are tested
// against.
#pragma once

#include <memory>

#include "kernels/ops/backend.h"

namespace lowkey::kernels {

// Host memory, one thread. `dtype`: kBf16 or kF32. As on every backend, bf16 means weights, K, V and the
// inputs of matrix products are rounded to bf16.
std::unique_ptr<Backend> make_reference_backend(DType dtype);

}  // namespace lowkey::kernels
