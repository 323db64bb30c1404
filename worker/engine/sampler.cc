#include "worker/engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/ops/best_tokens.h"

namespace lowkey::worker {
namespace {

// Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators": the finalizer of SplitMix64.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

void add_logprobs(std::span<const float> logits, double maximum, int count, SampledToken* sampled) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - maximum);
  const double log_sum = maximum + std::log(sum);
  sampled->logprob = static_cast<float>(logits[sampled->token] - log_sum);
  if (count == 0) return;
  for (const int32_t id : kernels::best_tokens(logits, count)) {
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

kernels::TokenDraw draw_of(const SamplingParams& params, uint64_t position) {
  return {.top_k = params.top_k,
          .temperature = params.temperature,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .uniform = uniform_at(params.seed, position)};
}

Error not_numbers(uint64_t position) {
  return Error{Code::kInternal, fmt::format("logits of position {} are not numbers", position), {}};
}

Error nothing_allowed(uint64_t position) {
  return Error{
      Code::kInternal, fmt::format("logits of position {} leave no token that is allowed", position), {}};
}

// On their bits: nothing here keeps the compiler from taking many at a time.
bool is_distribution(std::span<const float> logits) {
  constexpr uint32_t kInfinity = 0x7f800000;
  uint32_t bad = 0, finite = 0;
  for (const float logit : logits) {
    const auto bits = std::bit_cast<uint32_t>(logit);
    const uint32_t magnitude = bits & 0x7fffffff;
    bad |= static_cast<uint32_t>(magnitude > kInfinity) | static_cast<uint32_t>(bits == kInfinity);
    finite |= static_cast<uint32_t>(magnitude < kInfinity);
  }
  return bad == 0 && finite != 0;
}

Result<SampledToken> sample(std::span<const float> logits, const SamplingParams& params, uint64_t position,
                            const LogitRules& rules) {
  std::span<const float> chosen = logits;
  std::vector<float> changed;
  if (rules.change(params)) {
    if (!is_distribution(logits)) return not_numbers(position);
    changed.assign(logits.begin(), logits.end());
    rules.apply(params, changed);
    chosen = changed;
  }
  SampledToken sampled{.token = kernels::draw_token(chosen, draw_of(params, position)).token};
  if (sampled.token < 0 && changed.empty()) return not_numbers(position);
  if (sampled.token < 0) return nothing_allowed(position);
  if (params.logprobs) {
    const double maximum = *std::max_element(logits.begin(), logits.end());
    add_logprobs(logits, maximum, params.top_logprobs, &sampled);
  }
  return sampled;
}

}  // namespace lowkey::worker
