// The dial `features`: in which coordinates a vector is stored.
#pragma once

#include "kernels/page/page_layout.h"
#include "kvstore/profile/profile.h"

namespace lowkey::kvstore {

enum class BasisKind : uint8_t { kIdentity, kPca, kWeighted, kTrained };
const char* to_string(BasisKind basis);

// `features:` of one side.
struct FeatureDial {
  BasisKind basis = BasisKind::kIdentity;
  double keep = 1.0;  // share of the features, the most important ones
  bool per_head =
      false;  // which ones: the profile's budget says so for every vector; else as many everywhere
};

// Sets the basis, mean and scales of one stored vector that keeps its first `dim` features. `vector`: of the
// profile; null or unused with the identity. pca, weighted and trained bases differ in how the profile was
// made only.
void set_basis(const FeatureDial& dial, const VectorProfile* vector, int dim, kernels::VectorSpec& spec);

}  // namespace lowkey::kvstore
