#include "kvstore/calibrate/feature_coder.h"

#include <algorithm>
#include <cmath>

#include "kernels/page/dtype.h"
#include "kernels/page/embedded_quantizer.h"
#include "kernels/page/page_format.h"

namespace lowkey::kvstore {
namespace {

constexpr int kScaleRounds = 3;     // the second changes scales by about 1 %, the third by less than 0.1 %
constexpr float kSmallest = 1e-6f;  // of a scale: features that never move

// Rows of features in units of scale and norm; `norms`: what they were divided by.
SampleRows units(const SampleRows& features, const std::vector<float>& scale, bool norm, float norm_edge,
                 Eigen::VectorXf& norms) {
  const Eigen::Map<const Eigen::ArrayXf> scales(scale.data(), static_cast<Eigen::Index>(scale.size()));
  SampleRows rows = features.array().rowwise() / scales.transpose();
  norms = Eigen::VectorXf::Ones(rows.rows());
  if (!norm) return rows;
  for (Eigen::Index i = 0; i < rows.rows(); ++i) {
    const std::span<const float> row(rows.row(i).data(), static_cast<size_t>(rows.cols()));
    norms[i] = std::max(kernels::bf16_to_f32(kernels::embedded_row_scalar(row, norm_edge)), kSmallest);
    rows.row(i) /= norms[i];
  }
  return rows;
}

}  // namespace

std::vector<float> fit_scales(const SampleRows& features, bool norm, float norm_edge) {
  const auto root_mean_square = [](const SampleRows& x) -> Eigen::ArrayXf {
    return (x.array().square().colwise().mean()).sqrt().max(kSmallest);
  };
  const Eigen::ArrayXf first = root_mean_square(features);
  std::vector<float> scale(first.begin(), first.end());
  Eigen::VectorXf norms;
  for (int round = 0; norm && round < kScaleRounds; ++round) {
    const Eigen::ArrayXf change = root_mean_square(units(features, scale, norm, norm_edge, norms));
    for (size_t i = 0; i < scale.size(); ++i) scale[i] = std::max(scale[i] * change[i], kSmallest);
  }
  return scale;
}

std::vector<std::array<double, kWidths.size()>> code_errors(const SampleRows& features,
                                                            const std::vector<float>& scale, bool norm,
                                                            float norm_edge) {
  Eigen::VectorXf norms;
  const SampleRows rows = units(features, scale, norm, norm_edge, norms);
  const size_t dim = scale.size();
  std::vector<std::array<double, kWidths.size()>> errors((dim + kernels::kGroupFeatures - 1) /
                                                         kernels::kGroupFeatures);
  for (Eigen::Index i = 0; i < rows.rows(); ++i) {
    for (size_t f = 0; f < dim; ++f) {
      const float u = rows(i, f), unit = norms[i] * scale[f];
      const uint8_t code = kernels::embedded_code(u);
      for (size_t w = 0; w < kWidths.size(); ++w) {
        const float value =
            kWidths[w] == 0 ? 0 : kernels::embedded_value(code >> (8 - kWidths[w]), kWidths[w]);
        const double error = double{unit} * (value - u);
        errors[f / kernels::kGroupFeatures][w] += error * error;
      }
    }
  }
  for (auto& group : errors)
    for (double& error : group) error /= static_cast<double>(rows.rows());
  return errors;
}

SampleRows features_of(const BasisPair& basis, const SampleRows& rows) {
  return (rows.rowwise() - basis.mean.cast<float>().transpose()) * basis.encode.cast<float>().transpose();
}

SampleRows features_of(const VectorProfile& vector, const SampleRows& rows) {
  const Eigen::Map<const SampleRows> encode(vector.encode.data(), std::ssize(vector.scale), rows.cols());
  const Eigen::Map<const Eigen::RowVectorXf> mean(vector.mean.data(), rows.cols());
  return (rows.rowwise() - mean) * encode.transpose();
}

}  // namespace lowkey::kvstore
