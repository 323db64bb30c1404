// A completion or chat request, checked: what /v1/completions and /v1/chat/completions have in common from
// here on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
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
};

struct GenerationRequest {
  Endpoint endpoint = Endpoint::kCompletions;
  std::string model;  // empty: not named
  std::variant<std::string, std::vector<int32_t>, std::vector<ChatMessage>> input;

  double temperature = 1;  // [0, 2]; 0: greedy
  double top_p = 1;        // (0, 1]
  int32_t top_k = 0;       // 0: off
  std::optional<uint64_t> seed;
  std::optional<uint32_t> max_tokens;  // >= 1; empty: the endpoint's default
  std::vector<std::string> stop;       // <= StopMatcher::kMaxStops
  bool ignore_eos = false;
  bool logprobs = false;
  uint32_t top_logprobs = 0;  // 0..20; completions: 0..5
  bool stream = false;
  bool include_usage = false;
  uint32_t min_levels = 0;  // of every page, to be read at least; 0: the server's setting; 3: all there are
  std::string cache_salt;   // pages are shared only with requests that have the same; <= kMaxCacheSaltBytes

  static constexpr size_t kMaxCacheSaltBytes = 128;

  std::vector<int32_t> prompt;  // token ids; set by encode_prompt()
};

// kInvalidArgument with the parameter's name. OpenAI's parameters that this server cannot honour are refused
// by name unless they hold their neutral value; names unknown to us are ignored, as OpenAI-compatible servers
// do.
Result<GenerationRequest> parse_generation(Endpoint endpoint, std::string_view body,
                                           const SamplingDefaults& defaults);

struct TokenizeRequest {
  std::string model;
  std::variant<std::string, std::vector<ChatMessage>> input;
  bool add_special_tokens = true;     // prompt form
  bool add_generation_prompt = true;  // messages form
};
Result<TokenizeRequest> parse_tokenize(std::string_view body);

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};
Result<DetokenizeRequest> parse_detokenize(std::string_view body);

}  // namespace lowkey::coordinator
