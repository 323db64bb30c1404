// cos and sin of a step's positions: computed once per step and table, used by q and k of every layer. In
// float64, position p as the turn of p - p % kStride, then of p % kStride: a position's bits are its own.
#pragma once

#include <array>
#include <complex>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops/backend.h"

namespace lowkey::kernels {

class RopeCache {
 public:
  struct Angles {
    // [inv_freq.size()] of one row of the step.
    const float* cos_of(size_t row) const { return cos.data() + row * inv_freq.size(); }
    const float* sin_of(size_t row) const { return sin.data() + row * inv_freq.size(); }

    std::vector<float> inv_freq;
    float attention_factor = 0;
    std::vector<int32_t> positions;
    std::vector<float> cos, sin;  // [row][inv_freq.size()]
    std::vector<std::complex<double>> steps,
        base;  // [kStride][inv_freq.size()]; of the last position's stride
  };

  // Of (table, positions); computed unless they are there. Valid until the next call.
  const Angles& find(const RopeTable& table, std::span<const int32_t> positions);

 private:
  static constexpr int kStride = 64;

  std::array<Angles, 2> cached_;  // models have one table, or one for local and one for global layers
  size_t next_ = 0;               // to be replaced
};

}  // namespace lowkey::kernels
