#include "kvstore/dials/features/basis.h"

namespace lowkey::kvstore {

const char* to_string(BasisKind basis) {
  switch (basis) {
    case BasisKind::kIdentity:
      return "identity";
    case BasisKind::kPca:
      return "pca";
    case BasisKind::kWeighted:
      return "weighted";
    case BasisKind::kTrained:
      return "trained";
  }
  return "?";
}

void set_basis(const FeatureDial& dial, const VectorProfile* vector, int dim, kernels::VectorSpec& spec) {
  if (dial.basis == BasisKind::kIdentity) return;
  LOWKEY_CHECK(vector != nullptr && dim <= std::ssize(vector->scale), "{} features", dim);
  const auto numbers = static_cast<std::ptrdiff_t>(dim * vector->mean.size());
  spec.encode.assign(vector->encode.begin(), vector->encode.begin() + numbers);
  spec.decode.assign(vector->decode.begin(), vector->decode.begin() + numbers);
  spec.mean = vector->mean;
  // Only embedded cells are static; affine codes carry their own ranges, and `full` needs none.
  if (spec.quantizer == kernels::Quantizer::kEmbedded)
    spec.scale.assign(vector->scale.begin(), vector->scale.begin() + dim);
}

}  // namespace lowkey::kvstore
