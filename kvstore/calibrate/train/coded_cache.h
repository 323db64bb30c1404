// The cache as training sees it: what is read back of every K and V row, as a differentiable function of
// bases, means and scales.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "kvstore/profile/profile.h"

namespace lowkey::kvstore {

// Stored vectors are numbered as in Profile: [bank][side][vector]. One thread uses it.
class CodedCache {
 public:
  // No bits (features of the group are dropped), no quantizer, or a width of embedded codes.
  static constexpr int64_t kDropped = 0, kExact = 255;

  explicit CodedCache(const Profile& profile);

  // What is kept: bits [vectors, groups], int64.
  void set_bits(torch::Tensor bits);
  // Once a step, before code(): maps the parameters to bases.
  void update();

  // What is read back of x [windows, kv_heads, tokens, head_dim] of one bank.
  torch::Tensor code(int bank, kernels::Side side, const torch::Tensor& x) const;
  // y = encode (x - mean) of the same, [windows, vectors of the side, tokens, dim].
  torch::Tensor features(int bank, kernels::Side side, const torch::Tensor& x) const;

  // For the optimizer. Rotations and means always; scales where codes are in the loop.
  std::vector<torch::Tensor> parameters(bool with_scales);
  int64_t num_vectors() const { return rotation_.size(0); }
  int64_t num_groups() const { return groups_; }

  // The initial profile with these bases, means and scales.
  Profile profile() const;
  void set_scales(const torch::Tensor& scales);  // [vectors, dim], > 0

 private:
  torch::Tensor rows(const torch::Tensor& per_vector, int bank, kernels::Side side) const;
  torch::Tensor joined(const torch::Tensor& x) const;

  Profile initial_;
  int64_t groups_;
  torch::Tensor encode0_, decode0_;  // [vectors, dim, dim], the initial bases; equal when orthonormal
  bool orthonormal_;
  torch::Tensor rotation_;  // [vectors, dim, dim]: X of the Cayley map
  // The mean moves in units of the rows' own standard deviation: one step size suits keys and values.
  torch::Tensor mean0_, mean_unit_, mean_move_, log_scale_;  // [vectors, dim]
  torch::Tensor mean_, encode_, decode_;                     // cayley(rotation_) times the initial ones
  torch::Tensor bits_, kept_, stored_;                       // [vectors, dim]
  bool coded_ = false;                                       // some width is a code's
};

}  // namespace lowkey::kvstore
