#include "kernels/page/affine_quantizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/page/dtype.h"

namespace lowkey::kernels {

AffinePair affine_pair(float low, float high, int bits) {
  constexpr float kMost = 65504.0f;  // of f16
  if (!(low <= high)) return {};
  low = std::clamp(low, -kMost, kMost);
  high = std::clamp(high, -kMost, kMost);
  if (bits == 0) return {f32_to_f16(low), 0};
  const float step = std::min((high - low) / static_cast<float>((1 << bits) - 1), kMost);
  return {f32_to_f16(low), f32_to_f16(step)};
}

uint32_t affine_code(float y, float minimum, float step, int bits) {
  if (!(step > 0)) return 0;
  const float code = std::nearbyint((y - minimum) / step);
  if (!(code > 0)) return 0;  // NaN too
  return static_cast<uint32_t>(std::min(code, static_cast<float>((1 << bits) - 1)));
}

}  // namespace lowkey::kernels
