// Who is worth keeping: one number per token of one KV head, from what attention has seen of it. Pure
// functions of the observed signal (kernels::TokenObserver), the same on every rank for its own heads.
#pragma once

#include <span>

#include "kvstore/dials/tokens/token_dial.h"

namespace lowkey::kvstore {

class TokenScorer {
 public:
  enum class Signal : uint8_t { kColumnSums, kWindowSums, kKeyNorms };

  virtual ~TokenScorer() = default;

  virtual Signal signal() const = 0;
  // First row of the window whose softmax weights are summed; the prompt's length is `tokens`.
  virtual int window_first(int /*tokens*/) const { return 0; }
  // `signal` and `scores`: one KV head, [tokens]. A higher score stays. No score is NaN.
  virtual void score(std::span<const float> signal, std::span<float> scores) const = 0;

  static const TokenScorer& of(TokenScore score);
};

}  // namespace lowkey::kvstore
