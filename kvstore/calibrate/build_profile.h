// From statistics to a profile without budgets, and from measured losses to budgets.
#pragma once

#include <span>

#include "kvstore/calibrate/basis.h"
#include "kvstore/calibrate/feature_coder.h"
#include "kvstore/calibrate/plane_allocation.h"
#include "kvstore/profile/profile.h"

namespace lowkey::kvstore {

// Sets the vector's basis, mean, and the scales of its features.
VectorProfile make_vector_profile(const BasisPair& basis, const SampleRows& samples, bool norm,
                                  float norm_edge);

// What one stored vector is coded as when its groups have these bits.
kernels::VectorSpec embedded_spec(const Profile& profile, const VectorProfile& vector,
                                  std::span<const GroupBits> bits);
// Its first `groups` groups in the engine's dtype (MatryoshkaKV).
kernels::VectorSpec ranked_spec(const VectorProfile& vector, int groups);

// The losses of all widths from measured ones of no bits and 2 bits: more bits lose less in the ratio of the
// mean square errors of the samples (the loss is quadratic where it is small), and never more.
GroupLoss interpolate_loss(double without, double two_bits,
                           const std::array<double, kWidths.size()>& code_errors);

}  // namespace lowkey::kvstore
