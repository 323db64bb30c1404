// What `lowkey bench` was asked to do.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>

#include "base/result.h"
#include "cli/bench_trace.h"

namespace lowkey::cli {

// Where the server is: http://host[:port][/prefix].
struct ServerUrl {
  std::string host;
  std::string port = "80";
  std::string prefix;  // "" or "/..." without a trailing slash

  static Result<ServerUrl> parse(std::string_view text);
};

// A length in tokens: "128" or "uniform:64,512" (both ends included).
struct LengthDistribution {
  int least = 1;
  int most = 1;

  static Result<LengthDistribution> parse(std::string_view text);
  int draw(std::mt19937_64& random) const { return std::uniform_int_distribution(least, most)(random); }
  double mean() const { return (least + most) / 2.0; }
};

struct BenchOptions {
  ServerUrl server;
  std::string model;  // empty: the first of /v1/models
  std::string api_key;
  bool chat = false;    // /v1/chat/completions instead of /v1/completions
  int concurrency = 8;  // closed loop: this many requests at any time
  double rate = 0;      // > 0: open loop, Poisson arrivals per second instead
  int requests = 64;    // 0: until `duration_seconds` have passed
  double duration_seconds = 0;
  LengthDistribution prompt_tokens{128, 128};
  LengthDistribution output_tokens{64, 64};
  uint64_t seed = 0;
  double temperature = 0;        // of the answers
  TraceOptions trace;            // with a file: its arrivals, lengths and prefixes instead of the above
  double timeout_seconds = 300;  // of one request
};

// A prompt of about `words` words; the same for the same (seed, request), and different in its first words
// for others.
std::string synthetic_prompt(uint64_t seed, uint64_t request, int words);

}  // namespace lowkey::cli
