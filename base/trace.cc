#include "base/trace.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <mutex>
#include <vector>

namespace lowkey {

namespace {

struct Span {
  const char* name;
  SpanNumber numbers[2];
  int64_t begin_ns;
  int64_t end_ns;
};

// Of one thread. The mutex is contended only while the trace is written.
struct Ring {
  std::mutex mutex;
  std::vector<Span> spans;  // the next one takes the place of spans[next], once there are kSpansPerThread
  size_t next = 0;
};

struct Recorder {
  std::mutex mutex;
  std::filesystem::path file;
  std::string process;
  std::vector<std::shared_ptr<Ring>> rings;  // of threads that have ended, too
};

Recorder& recorder() {
  static Recorder* const one = new Recorder;  // never destroyed: threads may outlive main()
  return *one;
}

Ring& ring_of_this_thread() {
  thread_local const std::shared_ptr<Ring> mine = [] {
    auto ring = std::make_shared<Ring>();
    std::lock_guard lock(recorder().mutex);
    recorder().rings.push_back(ring);
    return ring;
  }();
  return *mine;
}

int64_t now_ns() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// One complete event; microseconds, as the format has them.
void write_span(std::ostream& out, const Span& span, size_t thread) {
  out << fmt::format(R"(,
{{"ph":"X","pid":{},"tid":{},"name":"{}","ts":{:.3f},"dur":{:.3f})",
                     getpid(), thread, span.name, span.begin_ns / 1e3, (span.end_ns - span.begin_ns) / 1e3);
  if (const auto& [first, second] = span.numbers; first.name != nullptr) {
    out << fmt::format(R"(,"args":{{"{}":{})", first.name, first.value);
    if (second.name != nullptr) out << fmt::format(R"(,"{}":{})", second.name, second.value);
    out << '}';
  }
  out << '}';
}

}  // namespace

std::atomic<bool> TraceSpan::recording = false;

Status start_trace(const std::filesystem::path& file, const std::string& process) {
  if (!std::ofstream(file))
    return Error{Code::kUsage, fmt::format("--trace {}: cannot be written", file.string()), "trace"};
  std::lock_guard lock(recorder().mutex);
  recorder().file = file;
  recorder().process = process;
  TraceSpan::recording = true;
  return {};
}

Status write_trace() {
  Recorder& all = recorder();
  std::lock_guard lock(all.mutex);
  if (all.file.empty()) return {};
  std::ofstream out(all.file);
  out << fmt::format(R"({{"displayTimeUnit":"ms","traceEvents":[
{{"ph":"M","pid":{},"name":"process_name","args":{{"name":"{}"}}}})",
                     getpid(), all.process);
  for (size_t thread = 0; thread < all.rings.size(); ++thread) {
    Ring& ring = *all.rings[thread];
    std::lock_guard ring_lock(ring.mutex);
    const size_t oldest = ring.spans.size() < kSpansPerThread ? 0 : ring.next;
    for (size_t i = 0; i < ring.spans.size(); ++i)
      write_span(out, ring.spans[(oldest + i) % ring.spans.size()], thread);
  }
  out << "\n]}\n";
  if (!out.flush()) return Error{Code::kUnavailable, fmt::format("{}: cannot be written", all.file.string())};
  return {};
}

void TraceSpan::begin(const char* name, SpanNumber first, SpanNumber second) {
  name_ = name;
  numbers_[0] = first;
  numbers_[1] = second;
  begin_ns_ = now_ns();
}

void TraceSpan::end() {
  Ring& ring = ring_of_this_thread();
  const Span span{name_, {numbers_[0], numbers_[1]}, begin_ns_, now_ns()};
  std::lock_guard lock(ring.mutex);
  if (ring.spans.size() < kSpansPerThread) {
    ring.spans.push_back(span);
  } else {
    ring.spans[ring.next] = span;
    ring.next = (ring.next + 1) % kSpansPerThread;
  }
}

}  // namespace lowkey
