#include "worker/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "transport/wire/lowkey.pb.h"

namespace lowkey::worker {
namespace {

constexpr int kMaxTopLogprobs = 20;

// Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators": the finalizer of SplitMix64.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

Error invalid(const char* param, const std::string& message) {
  return Error{Code::kInvalidArgument, fmt::format("{}: {}", param, message), param};
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

// Unnormalised probabilities of one draw: exp((logit - maximum) / temperature), float64.
class Draw {
 public:
  Draw(std::span<const float> logits, double maximum, double temperature) : logits_(logits) {
    weights_.reserve(logits.size());
    for (const float logit : logits) weights_.push_back(std::exp((logit - maximum) / temperature));
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

Result<SamplingParams> SamplingParams::from_wire(const wire::SamplingParams& wire) {
  SamplingParams params;
  if (!(wire.temperature() >= 0) || !std::isfinite(wire.temperature())) {
    return invalid("temperature", fmt::format("expected a finite number >= 0, found {}", wire.temperature()));
  }
  if (!(wire.top_p() > 0 && wire.top_p() <= 1)) {
    return invalid("top_p", fmt::format("expected more than 0 and at most 1, found {}", wire.top_p()));
  }
  if (wire.top_k() < 0)
    return invalid("top_k", fmt::format("expected 0 (off) or more, found {}", wire.top_k()));
  if (wire.max_tokens() < 1 || wire.max_tokens() > INT32_MAX) {
    return invalid("max_tokens", fmt::format("expected at least 1, found {}", wire.max_tokens()));
  }
  if (wire.top_logprobs() > kMaxTopLogprobs) {
    return invalid("top_logprobs",
                   fmt::format("expected 0 to {}, found {}", kMaxTopLogprobs, wire.top_logprobs()));
  }
  if (wire.prompt_logprobs())
    return invalid("prompt_logprobs", "log-probabilities of the prompt are not supported");
  params.temperature = wire.temperature();
  params.top_p = wire.top_p();
  params.top_k = wire.top_k();
  params.seed = wire.seed();
  params.max_tokens = static_cast<int>(wire.max_tokens());
  params.logprobs = wire.logprobs();
  params.top_logprobs = static_cast<int>(wire.top_logprobs());
  params.stop_token_ids.assign(wire.stop_token_ids().begin(), wire.stop_token_ids().end());
  params.ignore_eos = wire.ignore_eos();
  return params;
}

Result<SampledToken> sample(std::span<const float> logits, const SamplingParams& params, uint64_t position) {
  size_t top = 0;
  bool has_nan = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    has_nan |= std::isnan(logits[i]);
    if (logits[i] > logits[top]) top = i;
  }
  if (has_nan || !std::isfinite(logits[top])) {
    return Error{Code::kInternal, fmt::format("logits of position {} are not numbers", position), {}};
  }
  SampledToken sampled;
  if (params.temperature == 0) {
    sampled.token = static_cast<int32_t>(top);
  } else {
    const Draw draw(logits, logits[top], params.temperature);
    const bool filtered =
        (params.top_k > 0 && params.top_k < static_cast<int>(logits.size())) || params.top_p < 1;
    sampled.token = draw.pick(filtered ? draw.filtered(params.top_k, params.top_p) : draw.all(),
                              uniform_at(params.seed, position));
  }
  if (params.logprobs) add_logprobs(logits, logits[top], params.top_logprobs, &sampled);
  return sampled;
}

}  // namespace lowkey::worker
