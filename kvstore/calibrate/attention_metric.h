// How much a small change of a stored key or value moves what its layer adds to the residual stream: one
// quadratic form per KV head, gathered from the forward pass alone.
//
// With a_ts the softmax weight of query t on token s, o_t = sum_s a_ts v_s and P = W_o^T W_o of the query
// head's slice of the output projection, to first order
//   |W_o d(o_t)|^2 = a_ts^2 (v_s - o_t)^T P (v_s - o_t) (q_t . d(k_s))^2 scale^2    for a key,
//                  = a_ts^2 d(v_s)^T P d(v_s)                                       for a value,
// so that K = sum w_t q_t q_t^T scale^2 with w_t = sum_s a_ts^2 |W_o (v_s - o_t)|^2, and V = sum a_ts^2 P,
// over the pairs (t, s) that are read from codes. (The output-aware metric of KQ-SVD and OSCAR, per token
// instead of over the covariance of all queries.)
#pragma once

#include <Eigen/Core>
#include <span>
#include <vector>

namespace lowkey::kvstore {

// What attention was given for the tokens 0 .. tokens-1 of one sequence: rows of num_heads * head_dim (q) and
// num_kv_heads * head_dim (k, v) numbers.
struct AttentionInputs {
  int tokens = 0;
  int num_heads = 0, num_kv_heads = 0, head_dim = 0;
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  float scale = 0;
};

// Which pairs count.
struct EncodedPairs {
  int first_query = 0;  // queries at and after this position ...
  int query_step = 1;   // ... every so many of them: the sums are averages over thousands of queries
  int page_tokens = 32;
  int sink_tokens = 0;
};

class AttentionMetric {
 public:
  AttentionMetric(int num_kv_heads, int head_dim);

  // `output_gram`: P of every query head, [head_dim, head_dim]. Layers that read one bank are added up.
  void add(const AttentionInputs& inputs, const EncodedPairs& pairs,
           std::span<const Eigen::MatrixXf> output_gram);

  const Eigen::MatrixXd& key(int kv_head) const { return key_[kv_head]; }
  const Eigen::MatrixXd& value(int kv_head) const { return value_[kv_head]; }

 private:
  std::vector<Eigen::MatrixXd> key_, value_;
};

}  // namespace lowkey::kvstore
