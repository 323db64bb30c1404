#include "kvstore/dials/tokens/token_scorer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace lowkey::kvstore {
namespace {

// What is no number comes last, so that the order stays total.
float ordered(float x) {
  return std::isnan(x) ? -std::numeric_limits<float>::infinity() : x;
}

// H2O, MiniKV: the softmax weight that all rows have put on the token.
class ColumnSum final : public TokenScorer {
 public:
  Signal signal() const override { return Signal::kColumnSums; }
  void score(std::span<const float> signal, std::span<float> scores) const override {
    std::ranges::transform(signal, scores.begin(), ordered);
  }
};

// SnapKV (arXiv:2404.14469): the weight that the last 32 rows have put on the token, and the largest of its
// neighbourhood instead of its own, so that what belongs together stays together.
class WindowSum final : public TokenScorer {
 public:
  static constexpr int kWindow = 32;
  static constexpr int kPool = 7;

  Signal signal() const override { return Signal::kWindowSums; }
  int window_first(int tokens) const override { return std::max(0, tokens - kWindow); }
  void score(std::span<const float> signal, std::span<float> scores) const override {
    const int tokens = static_cast<int>(signal.size());
    for (int t = 0; t < tokens; ++t) {
      float best = -std::numeric_limits<float>::infinity();
      const int end = std::min(tokens, t + kPool / 2 + 1);
      for (int near = std::max(0, t - kPool / 2); near < end; ++near)
        best = std::max(best, ordered(signal[near]));
      scores[t] = best;
    }
  }
};

// arXiv:2406.11430: keys of small norm draw attention.
class KeyNorm final : public TokenScorer {
 public:
  Signal signal() const override { return Signal::kKeyNorms; }
  void score(std::span<const float> signal, std::span<float> scores) const override {
    std::ranges::transform(signal, scores.begin(), [](float norm) { return ordered(-norm); });
  }
};

}  // namespace

const TokenScorer& TokenScorer::of(TokenScore score) {
  static const ColumnSum column_sum;
  static const WindowSum window_sum;
  static const KeyNorm key_norm;
  switch (score) {
    case TokenScore::kColumnSum:
      return column_sum;
    case TokenScore::kWindowSum:
      return window_sum;
    case TokenScore::kKeyNorm:
      return key_norm;
  }
  LOWKEY_CHECK(false, "score {}", static_cast<int>(score));
}

}  // namespace lowkey::kvstore
