// Conversions between f32 and the 16-bit formats, one element at a time: the plain versions that the SIMD
// ones are checked against. Round to nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

inline float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);  // NaN stays NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// The smallest bf16 that is not below `value`. REQUIRES: value >= 0.
inline uint16_t f32_to_bf16_up(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (bits >= 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | (bits > 0x7f800000u ? 0x40 : 0));
  return static_cast<uint16_t>((bits + 0xffffu) >> 16);
}

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);

// Element i of an array of `dtype`.
inline float load_element(const void* data, DType dtype, size_t i) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, static_cast<const char*>(data) + 4 * i, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(data) + 2 * i, 2);
  return dtype == DType::kBf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

inline void store_element(void* data, DType dtype, size_t i, float value) {
  if (dtype == DType::kF32) {
    std::memcpy(static_cast<char*>(data) + 4 * i, &value, 4);
    return;
  }
  const uint16_t bits = dtype == DType::kBf16 ? f32_to_bf16(value) : f32_to_f16(value);
  std::memcpy(static_cast<char*>(data) + 2 * i, &bits, 2);
}

// `value` as it reads back after being stored in `dtype`.
inline float round_to(DType dtype, float value) {
  if (dtype == DType::kF32) return value;
  return dtype == DType::kBf16 ? bf16_to_f32(f32_to_bf16(value)) : f16_to_f32(f32_to_f16(value));
}

}  // namespace lowkey::kernels
