// The CPU backend: matrix products in AVX-512 BF16 panels where the machine has them, else oneDNN; exact bf16
// pages attended in pairs of bf16 on the same machines; Highway for the rest; on a compute pool of its own.
#pragma once

#include <memory>

#include "kernels/ops/backend.h"

namespace lowkey::kernels {

struct CpuBackendOptions {
  DType dtype = DType::kBf16;  // kBf16 or kF32
  int threads = 1;             // of the compute pool, the calling thread included
  bool bf16_pairs = true;      // false, for tests and comparisons: neither panels nor attention in pairs
};

std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options);

}  // namespace lowkey::kernels
