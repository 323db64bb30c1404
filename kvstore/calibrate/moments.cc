#include "kvstore/calibrate/moments.h"

#include "base/check.h"

namespace lowkey::kvstore {

void Moments::add(const float* rows, int count, int64_t stride) {
  using Rows = Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>, 0,
                          Eigen::OuterStride<>>;
  const Eigen::MatrixXd x = Rows(rows, count, dim(), Eigen::OuterStride<>(stride)).cast<double>();
  sum_ += x.colwise().sum().transpose();
  products_.noalias() += x.transpose() * x;
  count_ += count;
}

Eigen::VectorXd Moments::mean() const {
  LOWKEY_CHECK(count_ > 0, "moments of no rows");
  return sum_ / static_cast<double>(count_);
}

Eigen::MatrixXd Moments::covariance() const {
  const Eigen::VectorXd center = mean();
  return products_ / static_cast<double>(count_) - center * center.transpose();
}

}  // namespace lowkey::kvstore
