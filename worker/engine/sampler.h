// From logits to a token. The draw depends on (logits, parameters, seed, position) and nothing else, so
// preemption, a retry elsewhere or other batch mates cannot change it.
//
// Order: temperature, then top-k, then top-p among what is left (as Hugging Face and vLLM do). Ties go to the
// lowest token id everywhere. Log-probabilities are the log-softmax of the untempered, unfiltered logits, as
// OpenAI reports them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace lowkey::wire {
class SamplingParams;
}

namespace lowkey::worker {

struct SamplingParams {
  double temperature = 1;  // >= 0; 0 is greedy
  double top_p = 1;        // (0, 1]
  int top_k = 0;           // 0: off
  uint64_t seed = 0;
  int max_tokens = 16;
  bool logprobs = false;
  int top_logprobs = 0;  // 0 .. 20
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;

  // Errors: kInvalidArgument with the parameter's name.
  static Result<SamplingParams> from_wire(const wire::SamplingParams& wire);
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;                       // when asked for
  std::vector<TokenLogprob> top_logprobs;  // most likely first
};

// Uniform in [0, 1), 53 bits: a counter-based generator (SplitMix64 finalizers over seed and position).
double uniform_at(uint64_t seed, uint64_t position);

// `position`: of the sampled token in its sequence. Error: kInternal when the logits hold no finite maximum.
Result<SampledToken> sample(std::span<const float> logits, const SamplingParams& params, uint64_t position);

}  // namespace lowkey::worker
