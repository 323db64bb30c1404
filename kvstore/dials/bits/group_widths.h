// The dial `bits`: how many bits every group of features gets, and at which level. Rank is an allocation of 0
// bits, so `features: keep` ends here too.
#pragma once

#include <span>
#include <vector>

#include "base/result.h"
#include "kvstore/dials/features/basis.h"
#include "kvstore/profile/profile.h"

namespace lowkey::kvstore {

inline constexpr int kWidthAuto = -1;  // bits of every group from the profile's budget

// `bits:` of one side.
struct BitDial {
  kernels::Quantizer quantizer = kernels::Quantizer::kFull;
  int width = 0;                                        // bits of every kept group; 0 with kFull
  kernels::ScaleAxis axis = kernels::ScaleAxis::kNone;  // affine
  int scale_span = 0;                                   // affine: tokens or features that share a pair
};

// Of one stored vector with `num_groups` groups. `budget`: what the profile's budget keeps of it; null where
// the recipe names none. `levels`: the recipe's cut points; with width: auto only their number counts, one or
// those of the budget. Trailing groups without bits are left out, but
// one group always stays. Errors, kUsage: a cut that does not fall on a bit (embedded) or on a group (affine,
// full).
Result<std::vector<GroupBits>> make_group_widths(const FeatureDial& features, const BitDial& dial,
                                                 int num_groups, std::span<const double> levels,
                                                 const std::vector<GroupBits>* budget);

}  // namespace lowkey::kvstore
