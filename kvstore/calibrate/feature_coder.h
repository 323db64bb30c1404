// What embedded codes do to the features of sample rows: scales for them, and how much each width loses.
#pragma once

#include <Eigen/Core>
#include <array>
#include <vector>

#include "kvstore/calibrate/basis.h"
#include "kvstore/profile/profile.h"

namespace lowkey::kvstore {

using SampleRows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// The widths that allocation chooses from: those with fast kernels, and none.
inline constexpr std::array<int, 4> kWidths = {0, 2, 4, 8};

// One scale per feature, such that feature / (scale * norm) has unit mean square over the samples, where norm
// is the row scalar of the page format (embedded_row_scalar with this edge): that is the density the codes
// are made for. The norm depends on the scales, so this is a fixed point, iterated.
std::vector<float> fit_scales(const SampleRows& features, bool norm, float norm_edge);

// Mean square error per group of 16 features and width in kWidths, summed over the group's features.
std::vector<std::array<double, kWidths.size()>> code_errors(const SampleRows& features,
                                                            const std::vector<float>& scale, bool norm,
                                                            float norm_edge);

SampleRows features_of(const BasisPair& basis, const SampleRows& rows);
SampleRows features_of(const VectorProfile& vector, const SampleRows& rows);

}  // namespace lowkey::kvstore
