// A point on the monotonic clock by which something must have happened.
#pragma once

#include <chrono>

namespace lowkey {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;
using Duration = Clock::duration;

class Deadline {
 public:
  static Deadline in(Duration duration) { return Deadline(Clock::now() + duration); }
  explicit Deadline(TimePoint at) : at_(at) {}

  bool passed() const { return Clock::now() >= at_; }
  TimePoint at() const { return at_; }
  Duration left() const { return at_ - Clock::now(); }

 private:
  TimePoint at_;
};

inline double seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace lowkey
