// What kernels say of single values that C++ does not: bit casts, 16-bit formats, rounding as written. One
// implementation by the device's instructions, one for the host-side emulation.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#ifndef __CUDACC__
#include <bit>
#include <cstring>

#include "kernels/page/dtype.h"
#endif

namespace lowkey::kernels::cuda {

#ifdef __CUDACC__

__device__ __forceinline__ float as_float(uint32_t bits) {
  return __uint_as_float(bits);
}
__device__ __forceinline__ uint32_t as_bits(float x) {
  return __float_as_uint(x);
}
__device__ __forceinline__ uint16_t to_bf16(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
__device__ __forceinline__ uint16_t to_f16(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
__device__ __forceinline__ float from_f16(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
// Rounded as written: never fused with what surrounds them.
__device__ __forceinline__ float mul_rn(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ __forceinline__ float add_rn(float a, float b) {
  return __fadd_rn(a, b);
}
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Not __byte_perm(): that one is promised to look at three bits of each selector alone, and code_tables.h
// wants the fourth, which repeats the sign of the byte.
__device__ __forceinline__ uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
  return d;
}
__device__ __forceinline__ void add_atomically(int* to, int x) {
  atomicAdd(to, x);
}
// To shared memory, which adds 32 bits by itself: 64 it would compare and swap, again and again where many
// threads mean the same. Whole once all who add are done.
__device__ __forceinline__ void add_atomically(unsigned long long* to, unsigned long long x) {
  auto* halves = reinterpret_cast<unsigned*>(to);
  const unsigned low = static_cast<unsigned>(x), before = atomicAdd(halves, low);
  const unsigned high = static_cast<unsigned>(x >> 32) + (before + low < before ? 1u : 0u);
  if (high != 0) atomicAdd(halves + 1, high);
}

#else

inline float as_float(uint32_t bits) {
  return std::bit_cast<float>(bits);
}
inline uint32_t as_bits(float x) {
  return std::bit_cast<uint32_t>(x);
}
inline uint16_t to_bf16(float x) {
  return f32_to_bf16(x);
}
inline uint16_t to_f16(float x) {
  return f32_to_f16(x);
}
inline float from_f16(uint16_t bits) {
  return f16_to_f32(bits);
}
inline float mul_rn(float a, float b) {
  return a * b;
}
inline float add_rn(float a, float b) {
  return a + b;
}
inline float exp2_fast(float x) {
  return std::exp2(x);
}
inline uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> 4 * i & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (nibble & 7)) & 0xff;
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;  // the byte's sign, eight times
    result |= byte << 8 * i;
  }
  return result;
}
// Threads of a block run one after the other.
template <class T>
void add_atomically(T* to, T x) {
  *to += x;
}
#endif

__device__ __forceinline__ float from_bf16(uint32_t bits) {
  return as_float(bits << 16);
}
// Two values in one word, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef __CUDACC__
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return to_bf16(low) | static_cast<uint32_t>(to_bf16(high)) << 16;
#endif
}

}  // namespace lowkey::kernels::cuda
