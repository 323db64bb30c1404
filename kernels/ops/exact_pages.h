#pragma once

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

// Whether pages hold this vector's rows as they are: what can be moved, observed and encoded again.
inline bool is_exact(const PageLayout& layout, const VectorLayout& vector) {
  return vector.quantizer == Quantizer::kFull && vector.encode == kNoNumbers && vector.mean == kNoNumbers &&
         vector.dim == vector.input_dim &&
         vector.num_planes == (vector.dim + kGroupFeatures - 1) / kGroupFeatures && layout.num_levels == 1;
}

}  // namespace lowkey::kernels
