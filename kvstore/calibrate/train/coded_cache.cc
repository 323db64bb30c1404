#include "kvstore/calibrate/train/coded_cache.h"

#include <algorithm>

#include "kvstore/calibrate/train/cayley.h"
#include "kvstore/calibrate/train/straight_through.h"

namespace lowkey::kvstore {
namespace {

using torch::Tensor;

// One member of all vectors, [vectors, shape...].
Tensor stack(const Profile& profile, std::vector<float> VectorProfile::*member, std::vector<int64_t> shape) {
  std::vector<Tensor> parts;
  for (const VectorProfile& vector : profile.vectors) {
    parts.push_back(torch::from_blob(const_cast<float*>((vector.*member).data()), shape).clone());
  }
  return torch::stack(parts);
}

std::vector<float> to_vector(const Tensor& tensor) {
  const Tensor flat = tensor.detach().contiguous();
  return {flat.data_ptr<float>(), flat.data_ptr<float>() + flat.numel()};
}

}  // namespace

CodedCache::CodedCache(const Profile& profile) : initial_(profile), groups_(profile.groups()) {
  const int64_t dim = profile.dim();
  const bool has_decode = !profile.vectors[0].decode.empty();
  encode0_ = stack(profile, &VectorProfile::encode, {dim, dim});
  decode0_ = has_decode ? stack(profile, &VectorProfile::decode, {dim, dim}) : encode0_;
  orthonormal_ = decode0_.equal(encode0_);
  if (orthonormal_) decode0_ = encode0_;
  rotation_ = torch::zeros_like(encode0_).requires_grad_();
  mean0_ = stack(profile, &VectorProfile::mean, {dim});
  const Tensor scale = stack(profile, &VectorProfile::scale, {dim});
  mean_unit_ = (decode0_ * scale.unsqueeze(-1)).square().sum(1).sqrt();
  mean_move_ = torch::zeros_like(mean0_).requires_grad_();
  log_scale_ = scale.clamp_min(1e-12).log().requires_grad_();
  set_bits(torch::full({num_vectors(), groups_}, kExact, torch::kInt64));
}

void CodedCache::set_bits(Tensor bits) {
  const int64_t dim = initial_.dim();
  bits_ = bits.repeat_interleave(kernels::kGroupFeatures, 1).slice(1, 0, dim);
  kept_ = (bits_ > 0).to(torch::kFloat32);
  // The norm is over all features up to the last one with bits (VectorLayout::dim).
  stored_ = std::get<0>(kept_.flip({1}).cummax(1)).flip({1});
  coded_ = (bits_ != kDropped).logical_and(bits_ != kExact).any().item<bool>();
}

void CodedCache::update() {
  const Tensor turn = cayley(rotation_);
  encode_ = turn.matmul(encode0_);
  decode_ = orthonormal_ ? encode_ : turn.matmul(decode0_);
  mean_ = mean0_ + mean_unit_ * mean_move_;
}

// The rows of one side of a bank, [vectors of the side, 1, dim] (a matrix keeps its shape).
Tensor CodedCache::rows(const Tensor& per_vector, int bank, kernels::Side side) const {
  const int64_t count = initial_.vectors_per_side();
  const Tensor part = per_vector.narrow(0, static_cast<int64_t>(initial_.index(bank, side, 0)), count);
  return part.dim() == 2 ? part.unsqueeze(1) : part;
}

// [windows, kv_heads, tokens, head_dim] -> [windows, vectors, tokens, join * head_dim]
Tensor CodedCache::joined(const Tensor& x) const {
  if (initial_.join == 1) return x;
  const int64_t windows = x.size(0), vectors = initial_.vectors_per_side(), tokens = x.size(2);
  return x.view({windows, vectors, initial_.join, tokens, initial_.head_dim})
      .transpose(2, 3)
      .reshape({windows, vectors, tokens, initial_.dim()});
}

Tensor CodedCache::features(int bank, kernels::Side side, const Tensor& x) const {
  return (joined(x) - rows(mean_, bank, side)).matmul(rows(encode_, bank, side).transpose(-1, -2));
}

Tensor CodedCache::code(int bank, kernels::Side side, const Tensor& x) const {
  Tensor y = features(bank, side, x);
  if (coded_) {
    const Tensor scale = rows(log_scale_, bank, side).exp();
    Tensor u = y / scale;
    Tensor unit = scale;
    if (initial_.norm) {
      const Tensor norm = row_norm(u, rows(stored_, bank, side), initial_.norm_edge);
      u = u / norm;
      unit = scale * norm;
    }
    y = straight_through(u, rows(bits_, bank, side)) * unit;
  } else {
    y = y * rows(kept_, bank, side);
  }
  const Tensor read = rows(mean_, bank, side) + y.matmul(rows(decode_, bank, side));
  if (initial_.join == 1) return read;
  return read.view({x.size(0), initial_.vectors_per_side(), x.size(2), initial_.join, initial_.head_dim})
      .transpose(2, 3)
      .reshape(x.sizes());
}

std::vector<Tensor> CodedCache::parameters(bool with_scales) {
  std::vector<Tensor> all = {rotation_, mean_move_};
  if (with_scales) all.push_back(log_scale_);
  return all;
}

void CodedCache::set_scales(const Tensor& scales) {
  const torch::NoGradGuard no_grad;
  log_scale_.copy_(scales.clamp_min(1e-12).log());
}

Profile CodedCache::profile() const {
  const torch::NoGradGuard no_grad;
  // Rounding of the trained product would make bases of large models drift from orthonormal: in float64.
  const Tensor turn = cayley(rotation_.detach().to(torch::kFloat64));
  const Tensor encode = turn.matmul(encode0_.to(torch::kFloat64)).to(torch::kFloat32);
  const Tensor decode = turn.matmul(decode0_.to(torch::kFloat64)).to(torch::kFloat32);
  const Tensor mean = mean0_ + mean_unit_ * mean_move_, scale = log_scale_.exp();
  Profile result = initial_;
  result.basis = "trained";
  for (int64_t i = 0; i < num_vectors(); ++i) {
    result.vectors[i] = {to_vector(encode[i]), to_vector(decode[i]), to_vector(mean[i]), to_vector(scale[i])};
  }
  return result;
}

}  // namespace lowkey::kvstore
