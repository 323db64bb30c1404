// The OpenAI objects of an answer, whole and as server-sent events.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "coordinator/api/generation_request.h"

namespace lowkey::coordinator {

struct AnswerIdentity {
  Endpoint endpoint = Endpoint::kCompletions;
  std::string id;       // "cmpl-..." or "chatcmpl-..."
  int64_t created = 0;  // Unix time
  std::string model;
  std::string system_fingerprint;
};

struct Usage {
  uint64_t prompt_tokens = 0;
  uint64_t completion_tokens = 0;
  uint64_t cached_tokens = 0;  // prompt tokens that were not computed again
  uint64_t cached_host = 0;    // of those, restored from a store's memory
  uint64_t cached_disk = 0;    // and from its disk; the others were on the device
};

// How finely its cache was read.
struct CacheUse {
  uint32_t levels = 0;  // of a page; 0: not told
  uint32_t lowest_levels_read = 0;
  uint64_t coarse_tokens = 0;  // of the answer, computed while something was read coarse

  bool coarse() const { return coarse_tokens > 0 || lowest_levels_read < levels; }
};

struct ScoredToken {
  std::string bytes;  // may be a part of a character
  float logprob = 0;
};
struct TokenDetail {
  ScoredToken token;
  bool scored = true;            // the first token of a prompt has no log-probability
  std::vector<ScoredToken> top;  // best first
  uint64_t text_offset = 0;      // in the answer, characters
};

enum class Finish { kNone, kStop, kLength };
const char* to_string(Finish finish);  // "stop", "length"

// One of the answers to a request, or what a stream adds to it.
struct ChoiceText {
  size_t index = 0;
  std::string text;
  std::optional<std::vector<TokenDetail>> details;  // where the request asked for logprobs
  Finish finish = Finish::kNone;
};

// An answer whose cache was read coarse says so: "kv".
std::string whole_answer(const AnswerIdentity& identity, std::span<const ChoiceText> choices,
                         const Usage& usage, const CacheUse& cache);

// Server-sent events, "data: {...}\n\n". With `include_usage` every event but the last has "usage": null.
// Chat only, the first one of a choice.
std::string role_event(const AnswerIdentity& identity, size_t index, bool include_usage);
// `cache`: null but for the last one of a choice.
std::string text_event(const AnswerIdentity& identity, const ChoiceText& choice, bool include_usage,
                       const CacheUse* cache);
std::string usage_event(const AnswerIdentity& identity, const Usage& usage);
std::string done_event();
std::string error_event(const std::string& error_body);

}  // namespace lowkey::coordinator
