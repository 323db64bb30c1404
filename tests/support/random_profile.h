// Profiles with random orthonormal bases, for tests: the shape of the real thing without a calibration.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>

#include "kvstore/recipe/resolve.h"

namespace lowkey::testing {

// [dim][dim], rows orthonormal (Gram-Schmidt on Gaussian rows).
inline std::vector<float> random_rotation(int dim, std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::vector<double> rows(size_t(dim) * dim);
  for (int i = 0; i < dim; ++i) {
    double* row = &rows[size_t(i) * dim];
    for (int f = 0; f < dim; ++f) row[f] = normal(random);
    for (int pass = 0; pass < 2; ++pass)  // twice: the second removes what rounding left
      for (int j = 0; j < i; ++j) {
        const double* other = &rows[size_t(j) * dim];
        double dot = 0;
        for (int f = 0; f < dim; ++f) dot += row[f] * other[f];
        for (int f = 0; f < dim; ++f) row[f] -= dot * other[f];
      }
    double norm = 0;
    for (int f = 0; f < dim; ++f) norm += row[f] * row[f];
    for (int f = 0; f < dim; ++f) row[f] /= std::sqrt(norm);
  }
  return {rows.begin(), rows.end()};
}

// A profile that fits `model`: random rotations, small means, scales that fall with the feature's number, as
// those of ordered features do. Budgets: "4x" (embedded; 8 4 4 2 bits and rotations of that, so heads differ)
// and "keep-0.50" (the first half of the groups and one more or less, in turn); both in `num_levels` levels,
// the whole of a group in one.
inline kvstore::Profile random_profile(const kvstore::ModelShape& model, int join = 1, uint32_t seed = 1,
                                       const std::string& basis = "trained", int num_levels = 1) {
  std::mt19937 random(seed);
  kvstore::Profile profile{.basis = basis, .model_fingerprint = model.fingerprint};
  profile.num_banks = kvstore::make_layer_map(kvstore::LayerShare::kNone, model.num_layers, model.kv_producer)
                          .value()
                          .num_banks();
  profile.num_kv_heads = model.num_kv_heads;
  profile.head_dim = model.head_dim;
  profile.join = join;
  profile.origin = "random, for tests";
  profile.budgets = {{.name = "4x", .levels = num_levels}, {.name = "keep-0.50", .levels = num_levels}};
  const int dim = profile.dim(), groups = profile.groups();
  std::uniform_real_distribution<float> uniform(-0.2f, 0.2f);
  const size_t count = size_t(profile.num_banks) * 2 * profile.vectors_per_side();
  for (size_t v = 0; v < count; ++v) {
    kvstore::VectorProfile vector;
    vector.encode = random_rotation(dim, random);
    vector.decode = vector.encode;
    for (int f = 0; f < dim; ++f) {
      vector.mean.push_back(uniform(random));
      vector.scale.push_back(1.5f - float(f) / float(dim));
    }
    profile.vectors.push_back(std::move(vector));
    constexpr std::array<uint8_t, 4> kBits = {8, 4, 4, 2};
    auto& bits = profile.budgets[0].bits.emplace_back();
    auto& kept = profile.budgets[1].bits.emplace_back();
    const int keep = std::clamp(groups / 2 + int(v % 3) - 1, 1, groups);
    for (int g = 0; g < groups; ++g) {
      const int level = g * num_levels / groups;
      bits.emplace_back()[level] = kBits[(g + v) % kBits.size()];
      kept.emplace_back()[level] = g < keep ? kernels::kFullBits : 0;
    }
  }
  return profile;
}

}  // namespace lowkey::testing
