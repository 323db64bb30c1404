// What `lowkey bench` measured: durations with bounded memory, and the report as text and JSON.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "cli/bench_options.h"

namespace lowkey::cli {

// Durations in buckets 1 % wide from 1 us to 10 h: percentiles are within 1 % however many values came; mean,
// least and most are exact.
class DurationHistogram {
 public:
  DurationHistogram();
  void add(double seconds);
  uint64_t count() const { return count_; }
  double mean() const { return count_ ? sum_ / static_cast<double>(count_) : 0; }
  double least() const { return count_ ? least_ : 0; }
  double most() const { return most_; }
  double percentile(double percent) const;  // nearest rank; 0 when empty

 private:
  std::vector<uint64_t> buckets_;
  uint64_t count_ = 0;
  double sum_ = 0, least_ = 0, most_ = 0;
};

// Prompt tokens that the server did not compute again, as its usage says. Not every server says where they
// lay.
struct CachedTokens {
  uint64_t all = 0, device = 0, host = 0, disk = 0;

  CachedTokens& operator+=(const CachedTokens& more) {
    all += more.all, device += more.device, host += more.host, disk += more.disk;
    return *this;
  }
};

// One request, from just before it was sent.
struct RequestOutcome {
  std::string error;           // kind ("connect", "http_429", "timeout", ...); empty: answered in full
  std::string detail;          // one line for the user
  Duration to_first{};         // to the first event that carries text
  Duration to_last{};          // to the end of the stream
  std::vector<Duration> gaps;  // between events that carry text
  uint64_t prompt_tokens = 0, output_tokens = 0;
  CachedTokens cached;
  bool coarse = false;  // the answer says that pages were read below all their levels
};

struct BenchStats {
  DurationHistogram to_first_token, between_tokens, whole_request;
  uint64_t answered = 0, failed = 0, coarse = 0, prompt_tokens = 0, output_tokens = 0;
  CachedTokens cached;
  std::map<std::string, uint64_t> errors;          // kind -> count
  std::map<std::string, std::string> error_lines;  // kind -> the first detail
  double seconds = 0;                              // first request sent to last answer

  void add(const RequestOutcome& outcome);
  double hit_rate() const;  // cached share of the prompt tokens
  std::string text() const;
  std::string json(const BenchOptions& options) const;
};

}  // namespace lowkey::cli
