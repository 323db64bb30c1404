#include "coordinator/api/generation.h"

#include <algorithm>

#include "coordinator/api/api_keys.h"

namespace lowkey::coordinator {
namespace {

// OpenAI's default for completions; a chat answer may take the rest of the context.
constexpr uint64_t kCompletionTokens = 16;

}  // namespace

std::optional<ApiError> Generation::fit(uint64_t limit) {
  const GenerationRequest& request = call->request;
  const uint64_t tokens = prompt().size();
  const uint64_t left = tokens < limit ? limit - tokens : 0;
  const bool chat = call->endpoint == Endpoint::kChat;
  const uint64_t usual = chat ? left : std::min(left, kCompletionTokens);
  const uint64_t wanted = request.max_tokens.value_or(static_cast<uint32_t>(std::max<uint64_t>(usual, 1)));
  if (tokens > limit || wanted > left)
    return context_length_exceeded(limit, tokens, wanted, chat ? "messages" : "prompt");
  if (request.min_tokens > wanted) {
    return api_error(
        Error{Code::kInvalidArgument,
              fmt::format("'min_tokens' must be at most the {} tokens that the answer may have; found {}.",
                          wanted, request.min_tokens),
              "min_tokens"});
  }
  max_tokens = wanted;
  return std::nullopt;
}

std::vector<int32_t> Generation::tokens() const {
  std::vector<int32_t> all = prompt();
  all.insert(all.end(), emitted.begin(), emitted.end());
  return all;
}

std::string Generation::salt() const {
  return cache_salt_of(call->tenant, call->request.cache_salt);
}

wire::Submit Generation::submit() const {
  const GenerationRequest& request = call->request;
  wire::Submit submit;
  submit.set_request_id(wire_id());
  submit.mutable_prompt()->Add(prompt().begin(), prompt().end());
  submit.mutable_emitted()->Add(emitted.begin(), emitted.end());
  submit.set_salt(salt());
  submit.set_min_levels(request.min_levels);
  submit.set_priority(request.priority);
  auto& sampling = *submit.mutable_sampling();
  sampling.set_temperature(request.temperature);
  sampling.set_top_p(request.top_p);
  sampling.set_top_k(request.top_k);
  sampling.set_min_p(request.min_p);
  sampling.set_seed(request.seed ? *request.seed + index % request.n : call->seed + index);
  sampling.set_presence_penalty(request.presence_penalty);
  sampling.set_frequency_penalty(request.frequency_penalty);
  sampling.set_repetition_penalty(request.repetition_penalty);
  for (const auto& [token, bias] : request.logit_bias) {
    sampling.add_bias_tokens(token);
    sampling.add_bias_values(bias);
  }
  sampling.set_max_tokens(static_cast<uint32_t>(max_tokens));
  sampling.set_min_tokens(request.min_tokens);
  sampling.mutable_stop_token_ids()->Add(request.stop_token_ids.begin(), request.stop_token_ids.end());
  sampling.set_ignore_eos(request.ignore_eos);
  sampling.set_logprobs(request.logprobs);
  sampling.set_top_logprobs(request.top_logprobs);
  sampling.set_prompt_logprobs(request.echo && request.logprobs && first_of_prompt());
  sampling.set_json_schema(request.json_schema);
  return submit;
}

}  // namespace lowkey::coordinator
