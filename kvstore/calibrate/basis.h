// Bases of stored vectors from their moments (VectorProfile's encode, decode and mean).
#pragma once

#include <Eigen/Core>

namespace lowkey::kvstore {

// A stored row x becomes features encode (x - mean), read back as mean + decode^T features. Rows are
// features, the most important first.
struct BasisPair {
  Eigen::MatrixXd encode, decode;
  Eigen::VectorXd mean;
};

// Eigenvectors of the covariance: orthonormal, decode = encode (MatryoshkaKV's start, arXiv:2410.14731).
BasisPair pca_basis(const Eigen::VectorXd& mean, const Eigen::MatrixXd& covariance);

// The transform code for errors that are judged by `metric`: with R = metric^(1/2) and U the eigenvectors of
// R covariance R, encode = U^T R and decode = U^T R^-1. Features are uncorrelated, and equal errors in any
// of them cost the same. Directions the metric does not know (it is singular where queries have no
// component) get a hundredth of its mean.
BasisPair weighted_basis(const Eigen::VectorXd& mean, const Eigen::MatrixXd& covariance,
                         const Eigen::MatrixXd& metric);

}  // namespace lowkey::kvstore
