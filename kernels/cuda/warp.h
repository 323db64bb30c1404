// Operations of whole warps: shuffles, votes, sums, matrix products.
#pragma once

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/fragments.h"

#ifndef __CUDACC__
#include "kernels/cuda/warp_emulated.h"
#endif

namespace lowkey::kernels::cuda {

#ifdef __CUDACC__

template <class T>
__device__ __forceinline__ T shuffle(T x, int lane) {
  return __shfl_sync(kAllLanes, x, lane);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(kAllLanes, x, mask);
}
__device__ __forceinline__ void sync_warp() {
  __syncwarp();
}
// Whether it is so in any lane.
__device__ __forceinline__ bool any_lane(bool x) {
  return __any_sync(kAllLanes, x) != 0;
}

__device__ __forceinline__ void multiply_bf16(FragmentC<float>& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
}
__device__ __forceinline__ void multiply_f16(FragmentC<float>& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
}
// Bytes, signed or not; k = 32.
__device__ __forceinline__ void multiply_s8_u8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c.values[0]), "+r"(c.values[1]), "+r"(c.values[2]), "+r"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
}
__device__ __forceinline__ void multiply_u8_u8(FragmentC<int>& c, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c.values[0]), "+r"(c.values[1]), "+r"(c.values[2]), "+r"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
}
// k = 16: word 0 of A has row lane / 4, word 1 row lane / 4 + 8; both, and B's, k = 4 (lane % 4) .. + 3.
__device__ __forceinline__ void multiply_u8_s8_k16(FragmentC<int>& c, uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+r"(c.values[0]), "+r"(c.values[1]), "+r"(c.values[2]), "+r"(c.values[3])
               : "r"(a0), "r"(a1), "r"(b));
}
__device__ __forceinline__ void multiply_s8_s8_k16(FragmentC<int>& c, uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+r"(c.values[0]), "+r"(c.values[1]), "+r"(c.values[2]), "+r"(c.values[3])
               : "r"(a0), "r"(a1), "r"(b));
}

#endif

// Sums and maxima over the lanes that differ in the bits below `lanes` (a power of two); all get the result.
template <int lanes = kWarpSize>
__device__ __forceinline__ float sum_over(float x) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
template <int lanes = kWarpSize>
__device__ __forceinline__ float max_over(float x) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

}  // namespace lowkey::kernels::cuda
