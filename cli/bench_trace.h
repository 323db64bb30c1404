// Request traces that `lowkey bench --trace` replays: who asked when, how much, and which prefixes were
// shared.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"

namespace lowkey::cli {

struct TraceOptions {
  std::string file;   // empty: no trace
  double speed = 1;   // > 0; 2: arrivals twice as fast
  double tokens = 1;  // > 0; 0.25: prompts, answers and shared blocks a quarter as long
  int skip = 0;       // requests at the start of the file
  int requests = 0;   // after those; 0: all
};

struct TraceRequest {
  Duration at{};  // after the first request, as scaled
  int prompt_tokens = 1, output_tokens = 1;
  std::vector<uint64_t>
      blocks;  // ids; block i holds tokens [i, i + 1) * Trace::block_tokens, the last what is left
};

struct Trace {
  static constexpr int kMooncakeBlock = 512;  // tokens of a block in the file
  static constexpr int kLeastBlock = 4;       // tokens that tell any two block ids apart

  std::string format;                  // mooncake or azure
  int block_tokens = 0;                // as scaled
  std::vector<TraceRequest> requests;  // ascending in time

  // Which format it is, its content tells. Mooncake (Qin et al., FAST 2025): lines of
  //   {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [id of 512 tokens, ...]}
  // where equal ids are equal tokens behind an equal prefix. Azure (Patel et al., ISCA 2024): a table
  //   TIMESTAMP,ContextTokens,GeneratedTokens
  // without content, so no two of its prompts share a prefix. Mooncake's lengths scale by whole tokens of a
  // block. kBadInput with file, line, expected and found; kUsage where a scaled block would be shorter than
  // kLeastBlock.
  static Result<Trace> read(const TraceOptions& options);
};

// The tokens of a request's prompt. Blocks of equal ids have equal tokens, others differ within their first
// four tokens. All ids are below 256, which every vocabulary has.
std::vector<int32_t> trace_prompt(const Trace& trace, const TraceRequest& request);

}  // namespace lowkey::cli
