#include "kernels/cpu/rope_cache.h"

#include <algorithm>
#include <cmath>

namespace lowkey::kernels {

void RopeCache::update(const RopeTable& table, std::span<const int32_t> positions) {
  if (table.attention_factor == attention_factor_ && std::ranges::equal(table.inv_freq, inv_freq_) &&
      std::ranges::equal(positions, positions_)) {
    return;
  }
  inv_freq_ = table.inv_freq;
  attention_factor_ = table.attention_factor;
  positions_.assign(positions.begin(), positions.end());
  const size_t half = inv_freq_.size();
  cos_.resize(positions.size() * half);
  sin_.resize(positions.size() * half);
  for (size_t row = 0; row < positions.size(); ++row) {
    for (size_t i = 0; i < half; ++i) {
      const double angle = double{inv_freq_[i]} * positions[row];
      cos_[row * half + i] = static_cast<float>(std::cos(angle) * attention_factor_);
      sin_[row * half + i] = static_cast<float>(std::sin(angle) * attention_factor_);
    }
  }
}

}  // namespace lowkey::kernels
