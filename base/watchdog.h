// The second line against hangs: reports a piece of work that has been under way for too long. The first line are
// the deadlines of the work itself.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "base/deadline.h"

namespace lowkey {

class Watchdog {
 public:
  // `on_late` runs once, on the watchdog's thread, when begin() was longer than `limit` ago without an end().
  Watchdog(Duration limit, std::function<void()> on_late);
  ~Watchdog();

  void begin();
  void end();

 private:
  void watch();

  const Duration limit_;
  const std::function<void()> on_late_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<TimePoint> begun_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace lowkey
