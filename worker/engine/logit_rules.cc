#include "worker/engine/logit_rules.h"

#include <limits>

#include "base/check.h"

namespace lowkey::worker {

void TokenCounts::add_prompt(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) counts_.emplace(token, 0);
}

bool LogitRules::change(const SamplingParams& params) const {
  return params.has_penalties() || !params.bias.empty() || !forbidden.empty() || allowed != nullptr;
}

void LogitRules::apply(const SamplingParams& params, std::span<float> logits) const {
  for (const auto& [token, bias] : params.bias) logits[token] += bias;
  if (params.has_penalties()) {
    LOWKEY_CHECK(counts != nullptr, "penalties need the sequence's tokens");
    const auto repetition = static_cast<float>(params.repetition_penalty);
    for (const auto& [token, count] : counts->all()) {
      float& logit = logits[token];
      logit = logit > 0 ? logit / repetition : logit * repetition;
      if (count == 0) continue;
      logit -= static_cast<float>(params.frequency_penalty) * static_cast<float>(count);
      logit -= static_cast<float>(params.presence_penalty);
    }
  }
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  for (const int32_t token : forbidden) logits[token] = kNever;
  if (allowed == nullptr) return;
  std::vector<float> kept;
  for (const int32_t token : ends) kept.push_back(logits[token]);
  for (size_t token = 0; token < logits.size(); ++token) {
    if (!allowed->contains(static_cast<int32_t>(token))) logits[token] = kNever;
  }
  for (size_t i = 0; i < ends.size(); ++i) logits[ends[i]] = kept[i];
}

}  // namespace lowkey::worker
