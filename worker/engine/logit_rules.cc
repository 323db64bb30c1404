#include "worker/engine/logit_rules.h"

#include <algorithm>
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
  for (size_t first = 0; first < logits.size(); first += 64) {
    const uint64_t word = first / 64 < allowed->words.size() ? allowed->words[first / 64] : 0;
    const size_t count = std::min<size_t>(64, logits.size() - first);
    if (word == 0) {
      std::fill_n(logits.begin() + static_cast<ptrdiff_t>(first), count, kNever);
      continue;
    }
    if (word == ~uint64_t{0}) continue;
    for (size_t i = 0; i < count; ++i)
      if ((word >> i & 1) == 0) logits[first + i] = kNever;
  }
  for (size_t i = 0; i < ends.size(); ++i) logits[ends[i]] = kept[i];
}

}  // namespace lowkey::worker
