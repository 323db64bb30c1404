#include "kernels/ops/backend.h"

namespace lowkey::kernels {

void Backend::project_heads(const HeadsStep& step) {
  rms_norm(step.x, step.norm, step.epsilon, step.normed);
  linear(*step.weight, step.normed, step.bias, false, step.qkv);
  if (step.qkv.data != step.q.data) {
    copy_columns(step.qkv, 0, step.q);
    copy_columns(step.qkv, step.q.cols, step.k);
    copy_columns(step.qkv, step.q.cols + step.k.cols, step.v);
  }
  const auto norm_heads = [&](const float* weight, const Tensor& x) {
    if (weight == nullptr) return;
    const int heads = x.cols / step.rope->head_dim;
    const Tensor by_head{.data = x.data, .rows = x.rows * heads, .cols = step.rope->head_dim};
    rms_norm(by_head, weight, step.epsilon, by_head);
  };
  norm_heads(step.q_norm, step.q);
  norm_heads(step.k_norm, step.k);
  rope(*step.rope, step.positions, step.q);
  rope(*step.rope, step.positions, step.k);
}

void Backend::gated_mlp(const MlpStep& step) {
  rms_norm(step.x, step.norm, step.epsilon, step.normed);
  linear(*step.gate_up, step.normed, step.gate_up_bias, false, step.both);
  gated(step.activation, step.both, step.hidden);
  linear(*step.down, step.hidden, step.down_bias, step.accumulate, step.y);
}

}  // namespace lowkey::kernels
