// First and second moments of stored vectors, streamed, in double precision.
#pragma once

#include <Eigen/Core>
#include <cstdint>

namespace lowkey::kvstore {

class Moments {
 public:
  explicit Moments(int dim) : sum_(Eigen::VectorXd::Zero(dim)), products_(Eigen::MatrixXd::Zero(dim, dim)) {}

  int dim() const { return static_cast<int>(sum_.size()); }
  int64_t count() const { return count_; }

  // `count` rows of dim() numbers, `stride` apart.
  void add(const float* rows, int count, int64_t stride);

  // REQUIRES: count() > 0
  Eigen::VectorXd mean() const;
  Eigen::MatrixXd covariance() const;

 private:
  int64_t count_ = 0;
  Eigen::VectorXd sum_;
  Eigen::MatrixXd products_;
};

}  // namespace lowkey::kvstore
