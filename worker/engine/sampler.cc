#include "worker/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
namespace lowkey::worker {
namespace {

// Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators": the finalizer of SplitMix64.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Orders token ids, best first.
struct Better {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

// The `count` best token ids, best first.
std::vector<int32_t> best(std::span<const float> logits, size_t count) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  count = std::min(count, ids.size());
  if (count < ids.size()) std::nth_element(ids.begin(), ids.begin() + count, ids.end(), Better{logits});
  ids.resize(count);
  std::sort(ids.begin(), ids.end(), Better{logits});
  return ids;
}

// Unnormalised probabilities of one draw: exp((logit - maximum) / temperature), float64. The most likely
// token's is 1, so that those below min_p are the ones that go.
class Draw {
 public:
  Draw(std::span<const float> logits, double maximum, double temperature, double min_p) : logits_(logits) {
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
    if (top_k > 0) return nucleus(best(logits_, top_k), top_p);
    // Sorting the whole vocabulary for a nucleus of ten tokens would cost more than the model's head. Tokens
    // below (1 - p) / n of the mass hold less than 1 - p together, so the nucleus lies among the others.
    const double total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
    const double least = (1 - top_p) * total / static_cast<double>(weights_.size());
    std::vector<int32_t> ids;
    for (size_t id = 0; id < weights_.size(); ++id) {
      if (weights_[id] >= least) ids.push_back(static_cast<int32_t>(id));
    }
    std::sort(ids.begin(), ids.end(), Better{logits_});
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

void add_logprobs(std::span<const float> logits, double maximum, int count, SampledToken* sampled) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - maximum);
  const double log_sum = maximum + std::log(sum);
  sampled->logprob = static_cast<float>(logits[sampled->token] - log_sum);
  if (count == 0) return;
  for (const int32_t id : best(logits, count)) {
    sampled->top_logprobs.push_back({id, static_cast<float>(logits[id] - log_sum)});
  }
}

}  // namespace

double uniform_at(uint64_t seed, uint64_t position) {
  return (mix(mix(seed) ^ position) >> 11) * 0x1p-53;
}

SampledToken scored(std::span<const float> logits, int32_t token, int top_logprobs) {
  SampledToken scored{.token = token};
  add_logprobs(logits, *std::max_element(logits.begin(), logits.end()), top_logprobs, &scored);
  return scored;
}

Result<SampledToken> sample(std::span<const float> logits, const SamplingParams& params, uint64_t position,
                            const LogitRules& rules) {
  const auto failed = [&](const char* what) {
    return Error{Code::kInternal, fmt::format("logits of position {} {}", position, what), {}};
  };
  size_t top = 0;
  bool has_nan = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    has_nan |= std::isnan(logits[i]);
    if (logits[i] > logits[top]) top = i;
  }
  if (has_nan || !std::isfinite(logits[top])) return failed("are not numbers");
  const double maximum = logits[top];
  std::span<const float> chosen = logits;
  std::vector<float> changed;
  if (rules.change(params)) {
    changed.assign(logits.begin(), logits.end());
    rules.apply(params, changed);
    chosen = changed;
    top = std::max_element(changed.begin(), changed.end()) - changed.begin();
    if (!std::isfinite(changed[top])) return failed("leave no token that is allowed");
  }
  SampledToken sampled;
  if (params.temperature == 0) {
    sampled.token = static_cast<int32_t>(top);
  } else {
    const Draw draw(chosen, chosen[top], params.temperature, params.min_p);
    const bool filtered =
        (params.top_k > 0 && params.top_k < static_cast<int>(logits.size())) || params.top_p < 1;
    sampled.token = draw.pick(filtered ? draw.filtered(params.top_k, params.top_p) : draw.all(),
                              uniform_at(params.seed, position));
  }
  if (params.logprobs) add_logprobs(logits, maximum, params.top_logprobs, &sampled);
  return sampled;
}

}  // namespace lowkey::worker
