// cos and sin of a step's positions: computed once per step, used by q and k of every layer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops/backend.h"

namespace lowkey::kernels {

class RopeCache {
 public:
  // Makes cos() and sin() those of (table, positions); nothing to do when they are already.
  void update(const RopeTable& table, std::span<const int32_t> positions);

  // [head_dim / 2] of one row of the step.
  const float* cos(size_t row) const { return cos_.data() + row * inv_freq_.size(); }
  const float* sin(size_t row) const { return sin_.data() + row * inv_freq_.size(); }

 private:
  std::vector<float> inv_freq_;
  float attention_factor_ = 0;
  std::vector<int32_t> positions_;
  std::vector<float> cos_, sin_;  // [row][head_dim / 2]
};

}  // namespace lowkey::kernels
