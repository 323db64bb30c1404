// From logits to a token. The draw depends on (logits, parameters, the sequence's tokens, seed, position) and
// nothing else, so preemption, a retry elsewhere or other batch mates cannot change it.
//
// Order: rules (worker/engine/logit_rules.h), temperature, then min-p, then top-k, then top-p among what is
// left (as vLLM does). Ties go to the lowest token id everywhere. Log-probabilities are the log-softmax of
// the logits as the model gave them, before any of this.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/ops/token_draw.h"
#include "worker/engine/logit_rules.h"
#include "worker/engine/sampling_params.h"

namespace lowkey::worker {

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;                       // when asked for
  std::vector<TokenLogprob> top_logprobs;  // most likely first
};

// As an event tells of it: one entry more in each.
template <class Logprobs, class Tops>
void add_logprobs(const SampledToken& token, Logprobs* logprobs, Tops* tops) {
  auto& logprob = *logprobs->Add();
  logprob.set_token(token.token);
  logprob.set_logprob(token.logprob);
  auto& top = *tops->Add();
  for (const TokenLogprob& entry : token.top_logprobs) {
    auto& out = *top.add_entries();
    out.set_token(entry.token);
    out.set_logprob(entry.logprob);
  }
}

// Uniform in [0, 1), 53 bits: a counter-based generator (SplitMix64 finalizers over seed and position).
double uniform_at(uint64_t seed, uint64_t position);

// What a draw at `position` is without rules, for kernels::Backend::draw_tokens() or draw_token(); of row 0.
kernels::TokenDraw draw_of(const SamplingParams& params, uint64_t position);
// Whether tokens can be drawn: numbers, of which the largest is finite.
bool is_distribution(std::span<const float> logits);
// Where draw_tokens() found no token: in logits as they are, or after rules.
Error not_numbers(uint64_t position);
Error nothing_allowed(uint64_t position);

// `position`: of the sampled token in its sequence. Errors: kInternal when the logits hold no finite maximum,
// or the rules leave no token.
Result<SampledToken> sample(std::span<const float> logits, const SamplingParams& params, uint64_t position,
                            const LogitRules& rules = {});

// A token that was not sampled, with its log-probability and the `top_logprobs` most likely ones.
SampledToken scored(std::span<const float> logits, int32_t token, int top_logprobs);

}  // namespace lowkey::worker
