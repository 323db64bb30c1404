#include "kvstore/calibrate/build_profile.h"

#include <algorithm>

namespace lowkey::kvstore {
namespace {

std::vector<float> row_major(const Eigen::MatrixXd& matrix) {
  const SampleRows rows = matrix.cast<float>();
  return {rows.data(), rows.data() + rows.size()};
}

kernels::VectorSpec with_basis(const VectorProfile& vector, int dim) {
  kernels::VectorSpec spec;
  const size_t numbers = dim * vector.mean.size();
  spec.encode.assign(vector.encode.begin(), vector.encode.begin() + static_cast<std::ptrdiff_t>(numbers));
  spec.decode.assign(vector.decode.begin(), vector.decode.begin() + static_cast<std::ptrdiff_t>(numbers));
  spec.mean = vector.mean;
  return spec;
}

int stored_features(size_t groups, size_t dim) {
  return static_cast<int>(std::min(dim, groups * kernels::kGroupFeatures));
}

}  // namespace

VectorProfile make_vector_profile(const BasisPair& basis, const SampleRows& samples, bool norm,
                                  float norm_edge) {
  VectorProfile vector{.encode = row_major(basis.encode), .decode = row_major(basis.decode)};
  const Eigen::VectorXf mean = basis.mean.cast<float>();
  vector.mean.assign(mean.begin(), mean.end());
  vector.scale = fit_scales(features_of(basis, samples), norm, norm_edge);
  return vector;
}

kernels::VectorSpec embedded_spec(const Profile& profile, const VectorProfile& vector,
                                  std::span<const GroupBits> bits) {
  while (bits.size() > 1 && bits.back() == GroupBits{}) bits = bits.first(bits.size() - 1);
  const int dim = stored_features(bits.size(), vector.scale.size());
  kernels::VectorSpec spec = with_basis(vector, dim);
  spec.quantizer = kernels::Quantizer::kEmbedded;
  spec.norm = profile.norm;
  spec.norm_edge = profile.norm_edge;
  spec.bits.assign(bits.begin(), bits.end());
  spec.scale.assign(vector.scale.begin(), vector.scale.begin() + dim);
  return spec;
}

kernels::VectorSpec ranked_spec(const VectorProfile& vector, int groups) {
  const int kept = std::max(groups, 1);  // one group always stays, empty
  kernels::VectorSpec spec = with_basis(vector, stored_features(kept, vector.scale.size()));
  spec.bits.assign(kept, {groups == 0 ? uint8_t{0} : kernels::kFullBits});
  return spec;
}

GroupLoss interpolate_loss(double without, double two_bits,
                           const std::array<double, kWidths.size()>& code_errors) {
  // What is below any measurement's noise still orders groups by their errors.
  constexpr double kFloor = 1e-9;
  GroupLoss loss{};
  loss[0] = std::max(without, kFloor);
  loss[1] = std::clamp(two_bits, kFloor, loss[0]);
  for (size_t w = 2; w < kWidths.size(); ++w)
    loss[w] = code_errors[1] > 0 ? std::min(loss[w - 1], loss[1] * code_errors[w] / code_errors[1]) : 0;
  return loss;
}

}  // namespace lowkey::kvstore
