// The dial `features`: in which coordinates a vector is stored.
#pragma once

#include "kernels/page/page_layout.h"
#include "kvstore/profile/profile.h"
#include "kvstore/recipe/recipe.h"

namespace lowkey::kvstore {

// Sets the basis, mean and scales of one stored vector that keeps its first `dim` features. `vector`: of the
// profile; null or unused with the identity. pca, weighted and trained bases differ in how the profile was
// made only.
void set_basis(const SideDials& dials, const VectorProfile* vector, int dim, kernels::VectorSpec& spec);

}  // namespace lowkey::kvstore
