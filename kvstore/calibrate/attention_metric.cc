#include "kvstore/calibrate/attention_metric.h"

#include <algorithm>

#include "base/check.h"

namespace lowkey::kvstore {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// One head's rows out of rows of all heads.
RowMajor head_rows(const float* rows, int tokens, int heads, int head_dim, int head) {
  using Rows = Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>;
  return Rows(rows + int64_t{head} * head_dim, tokens, head_dim,
              Eigen::OuterStride<>(int64_t{heads} * head_dim));
}

}  // namespace

AttentionMetric::AttentionMetric(int num_kv_heads, int head_dim)
    : key_(num_kv_heads, Eigen::MatrixXd::Zero(head_dim, head_dim)),
      value_(num_kv_heads, Eigen::MatrixXd::Zero(head_dim, head_dim)) {}

void AttentionMetric::add(const AttentionInputs& in, const EncodedPairs& pairs,
                          std::span<const Eigen::MatrixXf> output_gram) {
  LOWKEY_CHECK(std::ssize(output_gram) == in.num_heads, "{} projections of {} heads", output_gram.size(),
               in.num_heads);
  const int group = in.num_heads / in.num_kv_heads;
  Eigen::VectorXf weights;
  for (int head = 0; head < in.num_heads; ++head) {
    const int kv_head = head / group;
    const RowMajor q = head_rows(in.q, in.tokens, in.num_heads, in.head_dim, head);
    const RowMajor k = head_rows(in.k, in.tokens, in.num_kv_heads, in.head_dim, kv_head);
    const RowMajor v = head_rows(in.v, in.tokens, in.num_kv_heads, in.head_dim, kv_head);
    const Eigen::MatrixXf& gram = output_gram[head];
    const Eigen::VectorXf lengths = (v * gram).cwiseProduct(v).rowwise().sum();  // v_s^T P v_s
    double value_weight = 0;
    for (int t = pairs.first_query; t < in.tokens; t += pairs.query_step) {
      const int first = pairs.sink_tokens;
      const int encoded = t / pairs.page_tokens * pairs.page_tokens - first;  // tokens read from codes
      if (encoded <= 0) continue;
      weights = (k.topRows(t + 1) * q.row(t).transpose()) * in.scale;
      weights = (weights.array() - weights.maxCoeff()).exp();
      weights /= weights.sum();
      const Eigen::VectorXf output = v.topRows(t + 1).transpose() * weights;
      const Eigen::VectorXf projected = gram * output;
      const Eigen::ArrayXf distance = lengths.segment(first, encoded).array() + output.dot(projected) -
                                      2.0f * (v.middleRows(first, encoded) * projected).array();
      const Eigen::ArrayXf squares = weights.segment(first, encoded).array().square();
      const double key_weight = (squares * distance.max(0.0f)).sum() * double{in.scale} * in.scale;
      const Eigen::VectorXd query = q.row(t).transpose().cast<double>();
      key_[kv_head].noalias() += key_weight * query * query.transpose();
      value_weight += squares.sum();
    }
    value_[kv_head] += value_weight * gram.cast<double>();
  }
}

}  // namespace lowkey::kvstore
