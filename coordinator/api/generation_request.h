// A completion or chat request, checked: what /v1/completions and /v1/chat/completions have in common from
// here on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/result.h"
#include "coordinator/text/chat_template.h"

namespace lowkey::coordinator {

enum class Endpoint { kCompletions, kChat };

// Values for what a request does not name: generation_config.json, else OpenAI's.
struct SamplingDefaults {
  double temperature = 1;
  double top_p = 1;
  int32_t top_k = 0;
  double min_p = 0;
  double repetition_penalty = 1;
};

using Prompt = std::variant<std::string, std::vector<int32_t>>;  // text, or token ids

struct GenerationRequest {
  Endpoint endpoint = Endpoint::kCompletions;
  std::string model;                  // empty: not named
  std::vector<Prompt> inputs;         // completions: one or several
  std::vector<ChatMessage> messages;  // chat
  ChatOptions chat;
  bool add_special_tokens = true;  // to text prompts; chat: none, the template writes them itself
  uint32_t n = 1;                  // choices for each prompt

  double temperature = 1;  // [0, 2]; 0: greedy
  double top_p = 1;        // (0, 1]
  int32_t top_k = 0;       // 0: off
  double min_p = 0;        // [0, 1]
  std::optional<uint64_t> seed;
  double presence_penalty = 0;                        // [-2, 2]
  double frequency_penalty = 0;                       // [-2, 2]
  double repetition_penalty = 1;                      // [0.01, 100]
  std::vector<std::pair<int32_t, float>> logit_bias;  // <= kMaxTokenIds, each in [-100, 100]
  std::optional<uint32_t> max_tokens;  // >= 1, with echo 0 as well; empty: the endpoint's default
  uint32_t min_tokens = 0;
  std::vector<std::string> stop;        // <= StopMatcher::kMaxStops
  std::vector<int32_t> stop_token_ids;  // <= kMaxTokenIds
  bool ignore_eos = false;
  bool skip_special_tokens = true;  // in the answer's text
  bool include_stop = false;        // what ended the answer stays in its text
  bool echo = false;                // completions: the prompt comes before the answer
  std::string json_schema;          // what the answer must be; empty: any text
  int32_t priority = 0;             // lower ones first
  bool logprobs = false;
  uint32_t top_logprobs = 0;  // 0..20; completions: 0..5
  bool stream = false;
  bool include_usage = false;
  uint32_t min_levels = 0;  // of every page, to be read at least; 0: the server's setting; 4: all there are
  std::string cache_salt;   // pages are shared only with requests that have the same; <= kMaxCacheSaltBytes

  static constexpr size_t kMaxCacheSaltBytes = 128;
  static constexpr size_t kMaxTokenIds = 1024;
  static constexpr size_t kMaxChoices = 64;  // of all prompts together
  static constexpr size_t kMaxTemplateVariableBytes = 64 << 10;

  std::vector<std::vector<int32_t>> prompts;  // token ids; set by encode_prompts(), as is:
  std::vector<std::string> texts;  // with `echo`: of each prompt as it was sent; empty where it was ids
  size_t choices() const { return prompts.size() * n; }
};

// kInvalidArgument with the parameter's name. Parameters that this server cannot honour are refused by name
// unless they hold their neutral value (unsupported_fields.h); names unknown to us are ignored, as
// OpenAI-compatible servers do.
Result<GenerationRequest> parse_generation(Endpoint endpoint, std::string_view body,
                                           const SamplingDefaults& defaults);

struct TokenizeRequest {
  std::string model;
  std::variant<std::string, std::vector<ChatMessage>> input;
  bool add_special_tokens = true;  // messages: false where the request does not say
  ChatOptions chat;                // messages form
};
Result<TokenizeRequest> parse_tokenize(std::string_view body);

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};
Result<DetokenizeRequest> parse_detokenize(std::string_view body);

}  // namespace lowkey::coordinator
