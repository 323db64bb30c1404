// What the lanes of a warp hold of the operands of one matrix product.
#pragma once

#include <cstdint>

namespace lowkey::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarpSize = 32;

// One product D[16][8] += A[16][k] B[k][8], as one lane holds it: k = 16 of bf16, 32 of bytes.
struct FragmentA {
  uint32_t words[4];
};
struct FragmentB {
  uint32_t words[2];
};
template <class T>
struct FragmentC {
  T values[4];
};

}  // namespace lowkey::kernels::cuda
