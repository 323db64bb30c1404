#include "kernels/cpu/rope_cache.h"

#include <algorithm>
#include <cmath>

namespace lowkey::kernels {

const RopeCache::Angles& RopeCache::find(const RopeTable& table, std::span<const int32_t> positions) {
  const auto is_of_table = [&](const Angles& angles) {
    return table.attention_factor == angles.attention_factor &&
           std::ranges::equal(table.inv_freq, angles.inv_freq);
  };
  const auto found = std::ranges::find_if(cached_, is_of_table);
  Angles& angles = found != cached_.end() ? *found : cached_[next_++ % cached_.size()];
  if (found != cached_.end() && std::ranges::equal(positions, angles.positions)) return angles;
  angles.inv_freq = table.inv_freq;
  angles.attention_factor = table.attention_factor;
  angles.positions.assign(positions.begin(), positions.end());
  const size_t half = angles.inv_freq.size();
  angles.cos.resize(positions.size() * half);
  angles.sin.resize(positions.size() * half);
  for (size_t row = 0; row < positions.size(); ++row) {
    for (size_t i = 0; i < half; ++i) {
      const double angle = double{angles.inv_freq[i]} * positions[row];
      angles.cos[row * half + i] = static_cast<float>(std::cos(angle) * angles.attention_factor);
      angles.sin[row * half + i] = static_cast<float>(std::sin(angle) * angles.attention_factor);
    }
  }
  return angles;
}

}  // namespace lowkey::kernels
