// Look-ups that turn codes into operands of products, on the device.
#pragma once

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/fast_plan.h"
#include "kernels/page/embedded_quantizer.h"

namespace lowkey::kernels::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;

// Largest magnitudes of the narrow forms' values become 127.
inline constexpr float kNibbleUnit = 127 / 2.732589483f;
inline constexpr float kCrumbUnit = 127 / 1.605217099f;

// What one stands for in the integers of a form's products.
__device__ __forceinline__ float unit_of(CodeForm form) {
  return form == CodeForm::kNibbles ? kNibbleUnit : form == CodeForm::kCrumbs ? kCrumbUnit : 1.0f;
}

// The tables of a warp's look-ups.
struct Tables {
  uint32_t positive[2];  // 4-bit codes 8 .. 15: magnitudes; others select 0
  uint32_t negative[2];  // 0 .. 7
  uint32_t crumbs;       // 2-bit codes, signed

  __device__ explicit Tables(const EmbeddedTables& tables) {
    for (int half = 0; half < 2; ++half) {
      positive[half] = negative[half] = 0;
      for (int i = 0; i < 4; ++i) {
        positive[half] |= rounded(tables.value4[8 + 4 * half + i], kNibbleUnit) << 8 * i;
        negative[half] |= rounded(-tables.value4[4 * half + i], kNibbleUnit) << 8 * i;
      }
    }
    crumbs = 0;
    for (int i = 0; i < 4; ++i) crumbs |= rounded(tables.value2[i], kCrumbUnit) << 8 * i;
  }
  __device__ static uint32_t rounded(float value, float unit) {
    return static_cast<uint32_t>(static_cast<int>(rintf(value * unit))) & 0xff;
  }
  // Four codes in the low half of a word. A selector's top bit repeats the sign of the byte it names, and no
  // magnitude has one: codes of the other half of the table come out as 0.
  __device__ uint32_t positives(uint32_t codes) const {
    return byte_perm(positive[0], positive[1], codes ^ 0x8888u);
  }
  __device__ uint32_t negatives(uint32_t codes) const { return byte_perm(negative[0], negative[1], codes); }
  __device__ uint32_t values(uint32_t crumbs_in_nibbles) const {
    return byte_perm(crumbs, crumbs, crumbs_in_nibbles);
  }
};

// Bytes two by two as f16, from a table of all 256.
__device__ __forceinline__ uint32_t wide_pair(const uint16_t* table, uint32_t word, int first) {
  const uint32_t low = table[word >> 8 * first & 0xff], high = table[word >> (8 * first + 8) & 0xff];
  return low | high << 16;
}

}  // namespace lowkey::kernels::cuda
