// What changes logits before a token is chosen. In this order:
//
// 1. logit_bias is added.
// 2. The repetition penalty r (Keskar et al. 2019, "CTRL", section 4.1) divides the positive logits of tokens
// that
//    prompt or answer hold by r, and multiplies the negative ones.
// 3. The frequency penalty times the number of times that the answer has the token is taken away, and the
//    presence penalty once where it has it. The prompt does not count.
// 4. What is forbidden gets minus infinity.
//
// The counts follow from the tokens alone: preemption, or a stream that goes on elsewhere, changes nothing.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/grammar/token_set.h"
#include "worker/engine/sampling_params.h"

namespace lowkey::worker {

// How often a sequence has each of its tokens.
class TokenCounts {
 public:
  void add_prompt(std::span<const int32_t> tokens);
  void add(int32_t token) { ++counts_[token]; }

  // Tokens of prompt and answer, with how often the answer has them.
  const std::unordered_map<int32_t, int>& all() const { return counts_; }

 private:
  std::unordered_map<int32_t, int> counts_;
};

struct LogitRules {
  const TokenCounts* counts = nullptr;        // needed where there are penalties
  std::span<const int32_t> forbidden = {};    // tokens
  const lowkey::TokenSet* allowed = nullptr;  // all others are forbidden; null: all are allowed
  std::span<const int32_t> ends = {};         // that are allowed too

  bool change(const SamplingParams& params) const;
  void apply(const SamplingParams& params, std::span<float> logits) const;
};

}  // namespace lowkey::worker
