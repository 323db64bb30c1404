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

// The `count` best token ids, best first.
std::vector<int32_t> best(std::span<const float> logits, size_t count) {
  const auto better = [&](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  count = std::min(count, ids.size());
  if (count < ids.size()) std::nth_element(ids.begin(), ids.begin() + count, ids.end(), better);
  ids.resize(count);
  std::sort(ids.begin(), ids.end(), better);
  return ids;
}

class Draw {
 public:
  Draw(std::span<const float> logits, double maximum, double temperature, double uniform)
      : logits_(logits), maximum_(maximum), temperature_(temperature), uniform_(uniform) {}

  int32_t from_all() const {
    std::vector<int32_t> ids(logits_.size());
    std::iota(ids.begin(), ids.end(), 0);
    return pick(ids, mass(ids));
  }

  int32_t from_best(int top_k, double top_p) const {
    std::vector<int32_t> ids;
    double total = 0;
    if (top_k > 0) {
      ids = best(logits_, top_k);
      total = mass(ids);
    } else {
      for (size_t id = 0; id < logits_.size(); ++id) total += weight(id);
    }
    // Sorting the whole vocabulary to find a nucleus of ten tokens would cost more than the model's head:
    // grow.
    size_t taken = ids.size();
    for (size_t tried = 256; top_k == 0; tried *= 8) {
      ids = best(logits_, tried);
      taken = nucleus(ids, top_p * total);
      if (taken > 0 || ids.size() == logits_.size()) break;
    }
    if (top_k > 0 && top_p < 1) taken = nucleus(ids, top_p * total);
    if (taken > 0) ids.resize(taken);  // 0: rounding left the sum short, all stay
    return pick(ids, mass(ids));
  }

 private:
  double weight(size_t id) const { return std::exp((logits_[id] - maximum_) / temperature_); }

  double mass(const std::vector<int32_t>& ids) const {
    double sum = 0;
    for (const int32_t id : ids) sum += weight(id);
    return sum;
  }

  // Size of the smallest leading run that holds `wanted` mass; 0 when even all do not.
  size_t nucleus(const std::vector<int32_t>& ids, double wanted) const {
    double sum = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      sum += weight(ids[i]);
      if (sum >= wanted) return i + 1;
    }
    return 0;
  }

  int32_t pick(const std::vector<int32_t>& ids, double total) const {
    const double target = uniform_ * total;
    double sum = 0;
    int32_t last = ids.front();
    for (const int32_t id : ids) {
      const double w = weight(id);
      if (w == 0) continue;
      sum += w;
      last = id;
      if (sum > target) break;
    }
    return last;
  }

  std::span<const float> logits_;
  double maximum_, temperature_, uniform_;
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

Result<SamplingParams> SamplingParams::from_wire(const wire::SamplingParams& wire, uint64_t fallback_seed) {
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
  params.seed = wire.has_seed() ? wire.seed() : fallback_seed;
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
    const Draw draw(logits, logits[top], params.temperature, uniform_at(params.seed, position));
    const bool filtered =
        (params.top_k > 0 && params.top_k < static_cast<int>(logits.size())) || params.top_p < 1;
    sampled.token = filtered ? draw.from_best(params.top_k, params.top_p) : draw.from_all();
  }
  if (params.logprobs) add_logprobs(logits, logits[top], params.top_logprobs, &sampled);
  return sampled;
}

}  // namespace lowkey::worker
