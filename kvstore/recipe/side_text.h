// What `features:` and `bits:` of a recipe say of one side, K or V, before defaults.
#pragma once

#include <optional>

#include "kvstore/recipe/recipe.h"

namespace lowkey::kvstore {

constexpr int kFullWidth = -2;  // beside kWidthAuto

struct SideText {
  std::optional<BasisKind> basis;
  std::optional<double> keep;
  std::optional<kernels::Quantizer> quantizer;
  std::optional<int> width;
  std::optional<kernels::ScaleAxis> axis;
  std::optional<int> group;
  std::optional<bool> online_scale;
};

// What both sides say under what one side says, with defaults. Errors: what its quantizer does not have,
// under the key `bits`; without a place.
Result<SideDials> make_side(const SideText& own, const SideText& both, bool per_head);

}  // namespace lowkey::kvstore
