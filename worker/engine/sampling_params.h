// What a request asks of sampling, as the engine has checked it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
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
  double min_p = 0;        // [0, 1], of the most likely token's probability
  uint64_t seed = 0;
  int max_tokens = 16;  // 0: the prompt alone is wanted
  int min_tokens = 0;   // before them neither end-of-text nor a stop token is sampled
  bool logprobs = false;
  int top_logprobs = 0;  // 0 .. 20
  bool prompt_logprobs = false;
  double presence_penalty = 0;                  // [-2, 2]
  double frequency_penalty = 0;                 // [-2, 2]
  double repetition_penalty = 1;                // [0.01, 100]
  std::vector<std::pair<int32_t, float>> bias;  // token, what is added to its logit
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::string json_schema;  // empty: any text

  static constexpr int kMaxTopLogprobs = 20;
  static constexpr double kLeastRepetition = 0.01, kMostRepetition = 100;

  // `vocab_size`: tokens that are named must be below it. Errors: kInvalidArgument with the parameter's name.
  static Result<SamplingParams> from_wire(const wire::SamplingParams& wire, int vocab_size);

  bool has_penalties() const {
    return presence_penalty != 0 || frequency_penalty != 0 || repetition_penalty != 1;
  }
};

}  // namespace lowkey::worker
