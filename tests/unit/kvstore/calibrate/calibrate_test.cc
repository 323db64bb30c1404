// The formulas of kvstore/calibrate against numpy float64 (tests/golden/calibrate).
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "kvstore/calibrate/attention_metric.h"
#include "kvstore/calibrate/basis.h"
#include "kvstore/calibrate/moments.h"

namespace lowkey::kvstore {
namespace {

using Eigen::MatrixXd;

const MatrixXd& golden(const std::string& name) {
  static const std::map<std::string, MatrixXd> all = [] {
    std::map<std::string, MatrixXd> matrices;
    std::ifstream in(LOWKEY_SOURCE_DIR "/tests/golden/calibrate/expected.txt");
    std::string key;
    int rows = 0, cols = 0;
    while (in >> key >> rows >> cols) {
      MatrixXd& matrix = matrices[key];
      matrix.resize(rows, cols);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < cols; ++c) in >> matrix(r, c);
    }
    return matrices;
  }();
  const auto found = all.find(name);
  EXPECT_NE(found, all.end()) << name;
  return found->second;
}

using FloatRows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

FloatRows golden_floats(const std::string& name) {
  return golden(name).cast<float>();
}

void expect_near(const MatrixXd& found, const MatrixXd& expected, double tolerance) {
  ASSERT_EQ(found.rows(), expected.rows());
  ASSERT_EQ(found.cols(), expected.cols());
  EXPECT_LE((found - expected).cwiseAbs().maxCoeff(), tolerance * expected.cwiseAbs().maxCoeff());
}

TEST(Moments, OfRowsInPiecesAndWithAStride) {
  const FloatRows rows = golden_floats("rows");
  FloatRows wide(rows.rows(), rows.cols() + 3);
  wide << rows, FloatRows::Constant(rows.rows(), 3, 99.0f);
  Moments moments(static_cast<int>(rows.cols()));
  moments.add(wide.data(), 70, wide.cols());
  moments.add(wide.row(70).data(), static_cast<int>(rows.rows()) - 70, wide.cols());
  EXPECT_EQ(moments.count(), rows.rows());
  expect_near(moments.mean().transpose(), golden("mean"), 1e-12);
  expect_near(moments.covariance(), golden("covariance"), 1e-11);
}

TEST(Basis, PcaIsOrthonormalAndOrdered) {
  const MatrixXd& covariance = golden("covariance");
  const BasisPair basis = pca_basis(golden("mean").transpose(), covariance);
  expect_near(basis.encode, golden("pca"), 1e-9);
  expect_near(basis.encode * basis.decode.transpose(), MatrixXd::Identity(8, 8), 1e-12);
  const Eigen::VectorXd spread = (basis.encode * covariance * basis.encode.transpose()).diagonal();
  for (int i = 1; i < 8; ++i) EXPECT_GE(spread[i - 1], spread[i]);
}

TEST(Basis, WeightedFeaturesAreUncorrelatedAndErrorsInThemCostTheSame) {
  const MatrixXd &covariance = golden("covariance"), &metric = golden("metric");
  const BasisPair basis = weighted_basis(golden("mean").transpose(), covariance, metric);
  expect_near(basis.encode, golden("weighted_encode"), 1e-8);
  expect_near(basis.decode, golden("weighted_decode"), 1e-8);
  // At full rank nothing is lost: decode^T encode = 1.
  expect_near(basis.decode.transpose() * basis.encode, MatrixXd::Identity(8, 8), 1e-11);
  const MatrixXd features = basis.encode * covariance * basis.encode.transpose();
  expect_near(features, features.diagonal().asDiagonal(), 1e-11);
  const MatrixXd floored = metric / (metric.trace() / 8) + 0.01 * MatrixXd::Identity(8, 8);
  expect_near(basis.decode * floored * basis.decode.transpose(), MatrixXd::Identity(8, 8), 1e-11);
}

TEST(Basis, AMetricOfZerosIsPca) {
  const MatrixXd& covariance = golden("covariance");
  const BasisPair basis = weighted_basis(golden("mean").transpose(), covariance, MatrixXd::Zero(8, 8));
  expect_near(basis.encode, golden("pca"), 1e-8);
  expect_near(basis.decode, golden("pca"), 1e-8);
}

TEST(AttentionMetric, IsTheFormulas) {
  const FloatRows q = golden_floats("q"), k = golden_floats("k"), v = golden_floats("v"),
                  wo = golden_floats("wo");
  std::vector<Eigen::MatrixXf> grams;
  for (int head = 0; head < 4; ++head) {
    const Eigen::MatrixXf slice = wo.middleCols(head * 3, 3);
    grams.push_back(slice.transpose() * slice);
  }
  AttentionMetric metric(2, 3);
  const AttentionInputs inputs{.tokens = static_cast<int>(q.rows()),
                               .num_heads = 4,
                               .num_kv_heads = 2,
                               .head_dim = 3,
                               .q = q.data(),
                               .k = k.data(),
                               .v = v.data(),
                               .scale = 1.0f / std::sqrt(3.0f)};
  metric.add(inputs, {.first_query = 5, .query_step = 2, .page_tokens = 4, .sink_tokens = 2}, grams);
  for (int head = 0; head < 2; ++head) {
    expect_near(metric.key(head), golden("key_metric").middleRows(head * 3, 3), 1e-5);
    expect_near(metric.value(head), golden("value_metric").middleRows(head * 3, 3), 1e-5);
  }
  // Layers that read one bank add up.
  metric.add(inputs, {.first_query = 5, .query_step = 2, .page_tokens = 4, .sink_tokens = 2}, grams);
  expect_near(metric.key(1), 2 * golden("key_metric").middleRows(3, 3), 1e-5);
}

// The key metric is the squared change of what the heads write, by finite differences in double precision.
TEST(AttentionMetric, IsTheChangeOfTheOutput) {
  const MatrixXd &q = golden("q"), &k = golden("k"), &v = golden("v"), &wo = golden("wo");
  const int t = 13, s = 6;  // one query, one encoded token
  const double scale = 1 / std::sqrt(3.0);
  const auto output = [&](const MatrixXd& keys, const MatrixXd& values) {
    const Eigen::VectorXd scores = keys.leftCols(3).topRows(t + 1) * q.row(t).head(3).transpose() * scale;
    const Eigen::VectorXd a = (scores.array() - scores.maxCoeff()).exp();
    return Eigen::VectorXd(wo.leftCols(3) * (values.leftCols(3).topRows(t + 1).transpose() * a / a.sum()));
  };
  const Eigen::RowVector3d direction(0.3, -0.2, 0.5);
  const double h = 1e-6;
  MatrixXd keys = k, values = v;
  keys.row(s).head(3) += h * direction;
  values.row(s).head(3) += h * direction;
  const double key_change = ((output(keys, v) - output(k, v)) / h).squaredNorm();
  const double value_change = ((output(k, values) - output(k, v)) / h).squaredNorm();

  // Only that query and that token: pages of one token, all others in the sink or too new.
  const FloatRows qf = q.leftCols(3).cast<float>(), kf = k.leftCols(3).cast<float>(),
                  vf = v.leftCols(3).cast<float>();
  const Eigen::MatrixXf slice = wo.leftCols(3).cast<float>(), gram = slice.transpose() * slice;
  AttentionMetric metric(1, 3);
  const AttentionInputs inputs{t + 1, 1, 1, 3, qf.data(), kf.data(), vf.data(), static_cast<float>(scale)};
  metric.add(inputs, {.first_query = t, .page_tokens = s + 1, .sink_tokens = s}, {&gram, 1});
  EXPECT_NEAR((direction * metric.key(0) * direction.transpose()).value(), key_change, 1e-3 * key_change);
  EXPECT_NEAR((direction * metric.value(0) * direction.transpose()).value(), value_change,
              1e-3 * value_change);
}

}  // namespace
}  // namespace lowkey::kvstore
