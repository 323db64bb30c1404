#include "kvstore/calibrate/basis.h"

#include <Eigen/Eigenvalues>

#include "base/check.h"

namespace lowkey::kvstore {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

// Columns by descending eigenvalue. Signs are free: the largest component of each is made positive.
MatrixXd eigenvectors(const MatrixXd& symmetric) {
  const Eigen::SelfAdjointEigenSolver<MatrixXd> solver(symmetric);
  LOWKEY_CHECK(solver.info() == Eigen::Success, "eigenvectors of a {}-dimensional matrix", symmetric.rows());
  MatrixXd vectors = solver.eigenvectors().rowwise().reverse();
  for (int i = 0; i < vectors.cols(); ++i) {
    int largest = 0;
    vectors.col(i).cwiseAbs().maxCoeff(&largest);
    if (vectors(largest, i) < 0) vectors.col(i) *= -1;
  }
  return vectors;
}

}  // namespace

BasisPair pca_basis(const VectorXd& mean, const MatrixXd& covariance) {
  const MatrixXd rows = eigenvectors(covariance).transpose();
  return {rows, rows, mean};
}

BasisPair weighted_basis(const VectorXd& mean, const MatrixXd& covariance, const MatrixXd& metric) {
  constexpr double kFloor = 0.01;
  const auto dim = metric.rows();
  const double average = metric.trace() / static_cast<double>(dim);
  // A metric of zeros (a head nobody attends to) is as good as none.
  const MatrixXd floored = average > 0 ? MatrixXd(metric / average + kFloor * MatrixXd::Identity(dim, dim))
                                       : MatrixXd(MatrixXd::Identity(dim, dim));
  const Eigen::SelfAdjointEigenSolver<MatrixXd> solver(floored);
  LOWKEY_CHECK(solver.info() == Eigen::Success, "square root of a {}-dimensional metric", dim);
  const MatrixXd root = solver.operatorSqrt(), inverse = solver.operatorInverseSqrt();
  const MatrixXd rotation = eigenvectors(root * covariance * root).transpose();
  return {rotation * root, rotation * inverse, mean};
}

}  // namespace lowkey::kvstore
