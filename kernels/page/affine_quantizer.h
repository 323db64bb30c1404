// Uniform codes 0 .. 2^bits - 1 between a block's own minimum and maximum, as KIVI (arXiv:2402.02750) and
// MiniKV (arXiv:2411.18077) have them: value = minimum + step * code. Minimum and step are rounded to f16
// before the codes are made, so that codes are of what is read back.
#pragma once

#include <cstdint>

namespace lowkey::kernels {

struct AffinePair {
  uint16_t minimum = 0;  // f16
  uint16_t step = 0;     // f16, >= 0
};

// Of a block with these extremes. Clips to the finite range of f16 (so values beyond +-65504 do); extremes of
// an empty block (low > high) give zeros. `bits` 0: step 0.
AffinePair affine_pair(float low, float high, int bits);

// round((y - minimum) / step), halves to even, clipped to 0 .. 2^bits - 1; 0 where step is 0 or y is NaN.
uint32_t affine_code(float y, float minimum, float step, int bits);

}  // namespace lowkey::kernels
