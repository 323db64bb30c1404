#include "kernels/ops/token_draw.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/ops/best_tokens.h"

namespace lowkey::kernels {
namespace {

// Unnormalised probabilities of one draw: exp((logit - maximum) / temperature), float64. The most likely
// token's is 1, so that those below min_p are the ones that go.
class Weights {
 public:
  Weights(std::span<const float> logits, double maximum, double temperature, double min_p) : logits_(logits) {
    weights_.reserve(logits.size());
    for (const float logit : logits) {
      const double weight = std::exp((logit - maximum) / temperature);
      weights_.push_back(weight < min_p ? 0 : weight);
    }
  }

  std::vector<int32_t> all() const {
    std::vector<int32_t> ids(weights_.size());
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
  }

  std::vector<int32_t> filtered(int top_k, double top_p) const {
    if (top_k > 0) return nucleus(best_tokens(logits_, static_cast<size_t>(top_k)), top_p);
    // Sorting the whole vocabulary for a nucleus of ten tokens would cost more than the model's head. Tokens
    // below (1 - p) / n of the mass hold less than 1 - p together, so the nucleus lies among the others.
    const double total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
    const double least = (1 - top_p) * total / static_cast<double>(weights_.size());
    std::vector<int32_t> ids;
    for (size_t id = 0; id < weights_.size(); ++id) {
      if (weights_[id] >= least) ids.push_back(static_cast<int32_t>(id));
    }
    std::sort(ids.begin(), ids.end(), BetterToken{logits_});
    return leading(std::move(ids), top_p * total);
  }

  // The first of `ids` at which the running sum passes `uniform` of the whole.
  int32_t pick(const std::vector<int32_t>& ids, double uniform) const {
    const double target = uniform * mass(ids);
    double sum = 0;
    int32_t last = ids.front();
    for (const int32_t id : ids) {
      if (weights_[id] == 0) continue;
      sum += weights_[id];
      last = id;
      if (sum > target) break;
    }
    return last;
  }

 private:
  double mass(const std::vector<int32_t>& ids) const {
    double sum = 0;
    for (const int32_t id : ids) sum += weights_[id];
    return sum;
  }

  std::vector<int32_t> nucleus(std::vector<int32_t> ids, double top_p) const {
    return top_p < 1 ? leading(ids, top_p * mass(ids)) : ids;
  }

  // The smallest leading run that holds `wanted` mass; all, when rounding leaves even those short.
  std::vector<int32_t> leading(std::vector<int32_t> ids, double wanted) const {
    double sum = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      sum += weights_[ids[i]];
      if (sum >= wanted) {
        ids.resize(i + 1);
        break;
      }
    }
    return ids;
  }

  std::span<const float> logits_;
  std::vector<double> weights_;
};

}  // namespace

DrawnToken draw_token(std::span<const float> logits, const TokenDraw& draw) {
  size_t top = 0;
  bool has_nan = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    has_nan |= std::isnan(logits[i]);
    if (logits[i] > logits[top]) top = i;
  }
  DrawnToken drawn;
  if (has_nan || logits.empty() || !std::isfinite(logits[top])) return drawn;
  const double maximum = logits[top];
  if (draw.temperature == 0) {
    drawn.token = static_cast<int32_t>(top);
  } else {
    const Weights weights(logits, maximum, draw.temperature, draw.min_p);
    const bool filtered = (draw.top_k > 0 && draw.top_k < static_cast<int>(logits.size())) || draw.top_p < 1;
    drawn.token =
        weights.pick(filtered ? weights.filtered(draw.top_k, draw.top_p) : weights.all(), draw.uniform);
  }
  if (draw.logprob == 0) return drawn;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - maximum);
  drawn.logprob = static_cast<float>(logits[drawn.token] - (maximum + std::log(sum)));
  return drawn;
}

}  // namespace lowkey::kernels
