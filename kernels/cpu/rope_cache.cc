#include "kernels/cpu/rope_cache.h"

#include <algorithm>
#include <cmath>

namespace lowkey::kernels {
namespace {

// Of the angles of a position: [half].
void turn(const RopeTable& table, int position, std::complex<double>* turns) {
  for (size_t i = 0; i < table.inv_freq.size(); ++i) {
    const double angle = double{table.inv_freq[i]} * position;
    turns[i] = {std::cos(angle), std::sin(angle)};
  }
}

}  // namespace

const RopeCache::Angles& RopeCache::find(const RopeTable& table, std::span<const int32_t> positions) {
  const auto is_of_table = [&](const Angles& angles) {
    return table.attention_factor == angles.attention_factor &&
           std::ranges::equal(table.inv_freq, angles.inv_freq);
  };
  const auto found = std::ranges::find_if(cached_, is_of_table);
  Angles& angles = found != cached_.end() ? *found : cached_[next_++ % cached_.size()];
  if (found != cached_.end() && std::ranges::equal(positions, angles.positions)) return angles;
  if (found == cached_.end()) {
    angles.inv_freq = table.inv_freq;
    angles.attention_factor = table.attention_factor;
    angles.steps.resize(kStride * table.inv_freq.size());
    for (int step = 0; step < kStride; ++step)
      turn(table, step, angles.steps.data() + step * table.inv_freq.size());
  }
  angles.positions.assign(positions.begin(), positions.end());
  const size_t half = angles.inv_freq.size();
  angles.cos.resize(positions.size() * half);
  angles.sin.resize(positions.size() * half);
  angles.base.resize(half);
  int64_t base_position = -1;
  for (size_t row = 0; row < positions.size(); ++row) {
    const int step = positions[row] % kStride;
    if (const int base = positions[row] - step; base != base_position) {
      base_position = base;
      turn(table, base, angles.base.data());
    }
    const std::complex<double>* steps = angles.steps.data() + step * half;
    for (size_t i = 0; i < half; ++i) {
      const std::complex<double>&a = angles.base[i], &b = steps[i];
      const double cos = a.real() * b.real() - a.imag() * b.imag();
      const double sin = a.real() * b.imag() + a.imag() * b.real();
      angles.cos[row * half + i] = static_cast<float>(cos * angles.attention_factor);
      angles.sin[row * half + i] = static_cast<float>(sin * angles.attention_factor);
    }
  }
  return angles;
}

}  // namespace lowkey::kernels
