#include "coordinator/api/generation.h"

#include <algorithm>

#include "coordinator/api/api_keys.h"

namespace lowkey::coordinator {
namespace {

// OpenAI's default for completions; a chat answer may take the rest of the context.
constexpr uint64_t kCompletionTokens = 16;

}  // namespace

std::optional<ApiError> Generation::fit(uint64_t limit) {
  const uint64_t prompt = request.prompt.size();
  const uint64_t left = prompt < limit ? limit - prompt : 0;
  const bool chat = endpoint == Endpoint::kChat;
  const uint64_t wanted = request.max_tokens.value_or(static_cast<uint32_t>(
      chat ? std::max<uint64_t>(left, 1) : std::clamp<uint64_t>(left, 1, kCompletionTokens)));
  if (wanted > left) return context_length_exceeded(limit, prompt, wanted, chat ? "messages" : "prompt");
  max_tokens = wanted;
  return std::nullopt;
}

std::vector<int32_t> Generation::tokens() const {
  std::vector<int32_t> all = request.prompt;
  all.insert(all.end(), emitted.begin(), emitted.end());
  return all;
}

std::string Generation::salt() const {
  return cache_salt_of(tenant, request.cache_salt);
}

wire::Submit Generation::submit() const {
  wire::Submit submit;
  submit.set_request_id(wire_id());
  submit.mutable_prompt()->Add(request.prompt.begin(), request.prompt.end());
  submit.mutable_emitted()->Add(emitted.begin(), emitted.end());
  submit.set_salt(salt());
  submit.set_min_levels(request.min_levels);
  auto& sampling = *submit.mutable_sampling();
  sampling.set_temperature(request.temperature);
  sampling.set_top_p(request.top_p);
  sampling.set_top_k(request.top_k);
  sampling.set_seed(request.seed.value_or(seed));
  sampling.set_max_tokens(static_cast<uint32_t>(max_tokens));
  sampling.set_logprobs(request.logprobs);
  sampling.set_top_logprobs(request.top_logprobs);
  sampling.set_ignore_eos(request.ignore_eos);
  return submit;
}

}  // namespace lowkey::coordinator
