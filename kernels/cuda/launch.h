// Launches of kernels, and what kernels are written with, the same on a device and in the host-side emulation
// (kernels/cuda/emulation). Kernels are `__global__` functions of plain structs; they have no static shared
// memory (LOWKEY_SHARED names the dynamic one).
#pragma once

#include <cuda_runtime.h>

#include <tuple>

#include "kernels/cuda/cuda_check.h"

#ifdef __CUDACC__
#define LOWKEY_SHARED(Type, name)                                 \
  extern __shared__ __align__(1024) unsigned char shared_bytes[]; \
  Type* const name = reinterpret_cast<Type*>(shared_bytes)
#else
#define LOWKEY_SHARED(Type, name) \
  Type* const name = reinterpret_cast<Type*>(::lowkey::kernels::cuda::emulation::here().shared)
#endif

namespace lowkey::kernels::cuda {

inline constexpr size_t kPlainSharedBytes = size_t{48} << 10;   // more needs a kernel's attribute
inline constexpr size_t kMostParameterBytes = size_t{4} << 10;  // that every device takes

#ifdef __CUDACC__
// Of dynamic shared memory that a block may have. Kernels that want much are allowed all of it, always the
// same number: a launch that wants less than another one does not lower what a recorded graph's launch relies
// on.
inline int most_shared_bytes() {
  static const int bytes = [] {
    int device = 0, most = 0;
    LOWKEY_CUDA_CHECK(cudaGetDevice(&device));
    LOWKEY_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return most;
  }();
  return bytes;
}
#endif

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
};

// A launch with nothing to do (grid of 0) is none. Aborts where the launch itself is refused: shapes are
// ours.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= kMostParameterBytes);
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
#ifdef __CUDACC__
  std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  std::apply(
      [&](Parameters&... each) {
        void* pointers[] = {static_cast<void*>(&each)..., nullptr};
        const void* function = reinterpret_cast<const void*>(kernel);
        if (shape.shared_bytes > kPlainSharedBytes) {
          LOWKEY_CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 most_shared_bytes()));
        }
        LOWKEY_CUDA_CHECK(
            cudaLaunchKernel(function, shape.grid, shape.block, pointers, shape.shared_bytes, stream));
      },
      values);
#else
  emulation::enqueue(stream, [=, values = std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)] {
    emulation::run_grid(shape.grid, shape.block, shape.shared_bytes, [&] { std::apply(kernel, values); });
  });
#endif
}

inline int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

}  // namespace lowkey::kernels::cuda
