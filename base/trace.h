// Spans of time for a profile view, written in Chrome's trace event format (chrome://tracing, Perfetto):
// docs/operations.md, "Where a step's time goes". Off unless start()ed; a span then costs one load.
//
// Every thread has a ring of its own and keeps its newest kSpansPerThread spans (56 bytes each), so a server
// may run for days with it. Thread rule: spans on any thread; start() before them; write() at any time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>

#include "base/result.h"

namespace lowkey {

inline constexpr size_t kSpansPerThread = size_t{1} << 17;

// Begins to record. `process` names it in the view. Errors: kUsage when the file cannot be written.
Status start_trace(const std::filesystem::path& file, const std::string& process);

// Writes what was recorded so far; nothing when it was never started. Errors: kUnavailable.
Status write_trace();

// What a viewer shows beside the name of a span.
struct SpanNumber {
  const char* name = nullptr;
  int64_t value = 0;
};

// From construction to destruction, on the constructing thread; nests. `name` and the names of numbers are
// literals: they are kept as pointers.
class TraceSpan {
 public:
  explicit TraceSpan(const char* name, SpanNumber first = {}, SpanNumber second = {}) {
    if (recording.load(std::memory_order_relaxed)) begin(name, first, second);
  }
  ~TraceSpan() {
    if (name_ != nullptr) end();
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  friend Status start_trace(const std::filesystem::path& file, const std::string& process);

  static std::atomic<bool> recording;

  void begin(const char* name, SpanNumber first, SpanNumber second);
  void end();

  const char* name_ = nullptr;  // null: not recorded
  SpanNumber numbers_[2];
  int64_t begin_ns_ = 0;
};

}  // namespace lowkey
