#include "worker/engine/sampling_params.h"

#include <cmath>

#include "transport/wire/lowkey.pb.h"

namespace lowkey::worker {
namespace {

Error invalid(const char* param, const std::string& message) {
  return Error{Code::kInvalidArgument, fmt::format("{}: {}", param, message), param};
}

Status check_range(const char* param, double value, double low, double high) {
  if (value >= low && value <= high) return {};
  return invalid(param, fmt::format("expected {} to {}, found {}", low, high, value));
}

Status check_token(const char* param, int32_t token, int vocab_size) {
  if (token >= 0 && token < vocab_size) return {};
  return invalid(param, fmt::format("expected token ids below {}, found {}", vocab_size, token));
}

Status read_lengths(const wire::SamplingParams& wire, SamplingParams* params) {
  if (wire.max_tokens() > INT32_MAX)
    return invalid("max_tokens", fmt::format("expected at most {}, found {}", INT32_MAX, wire.max_tokens()));
  if (wire.min_tokens() > wire.max_tokens()) {
    return invalid("min_tokens", fmt::format("expected at most max_tokens {}, found {}", wire.max_tokens(),
                                             wire.min_tokens()));
  }
  params->max_tokens = static_cast<int>(wire.max_tokens());
  params->min_tokens = static_cast<int>(wire.min_tokens());
  return {};
}

Status read_distribution(const wire::SamplingParams& wire, SamplingParams* params) {
  if (!(wire.temperature() >= 0) || !std::isfinite(wire.temperature())) {
    return invalid("temperature", fmt::format("expected a finite number >= 0, found {}", wire.temperature()));
  }
  if (!(wire.top_p() > 0 && wire.top_p() <= 1)) {
    return invalid("top_p", fmt::format("expected more than 0 and at most 1, found {}", wire.top_p()));
  }
  if (wire.top_k() < 0)
    return invalid("top_k", fmt::format("expected 0 (off) or more, found {}", wire.top_k()));
  LOWKEY_TRY(check_range("min_p", wire.min_p(), 0, 1));
  LOWKEY_TRY(check_range("presence_penalty", wire.presence_penalty(), -2, 2));
  LOWKEY_TRY(check_range("frequency_penalty", wire.frequency_penalty(), -2, 2));
  const double repetition = wire.repetition_penalty() == 0 ? 1 : wire.repetition_penalty();
  LOWKEY_TRY(check_range("repetition_penalty", repetition, SamplingParams::kLeastRepetition,
                         SamplingParams::kMostRepetition));
  params->temperature = wire.temperature();
  params->top_p = wire.top_p();
  params->top_k = wire.top_k();
  params->min_p = wire.min_p();
  params->presence_penalty = wire.presence_penalty();
  params->frequency_penalty = wire.frequency_penalty();
  params->repetition_penalty = repetition;
  return {};
}

Status read_tokens(const wire::SamplingParams& wire, int vocab_size, SamplingParams* params) {
  if (wire.bias_tokens_size() != wire.bias_values_size()) {
    return invalid("logit_bias", fmt::format("expected a value for each of {} tokens, found {}",
                                             wire.bias_tokens_size(), wire.bias_values_size()));
  }
  for (int i = 0; i < wire.bias_tokens_size(); ++i) {
    LOWKEY_TRY(check_token("logit_bias", wire.bias_tokens(i), vocab_size));
    LOWKEY_TRY(check_range("logit_bias", wire.bias_values(i), -100, 100));
    params->bias.emplace_back(wire.bias_tokens(i), wire.bias_values(i));
  }
  for (const int32_t token : wire.stop_token_ids())
    LOWKEY_TRY(check_token("stop_token_ids", token, vocab_size));
  params->stop_token_ids.assign(wire.stop_token_ids().begin(), wire.stop_token_ids().end());
  return {};
}

}  // namespace

Result<SamplingParams> SamplingParams::from_wire(const wire::SamplingParams& wire, int vocab_size) {
  SamplingParams params;
  LOWKEY_TRY(read_distribution(wire, &params));
  LOWKEY_TRY(read_lengths(wire, &params));
  LOWKEY_TRY(read_tokens(wire, vocab_size, &params));
  if (wire.top_logprobs() > kMaxTopLogprobs) {
    return invalid("top_logprobs",
                   fmt::format("expected 0 to {}, found {}", kMaxTopLogprobs, wire.top_logprobs()));
  }
  params.seed = wire.seed();
  params.logprobs = wire.logprobs();
  params.top_logprobs = static_cast<int>(wire.top_logprobs());
  params.prompt_logprobs = wire.prompt_logprobs();
  params.ignore_eos = wire.ignore_eos();
  params.json_schema = wire.json_schema();
  return params;
}

}  // namespace lowkey::worker
