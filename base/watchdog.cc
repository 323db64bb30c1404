#include "base/watchdog.h"

namespace lowkey {

Watchdog::Watchdog(Duration limit, std::function<void()> on_late)
    : limit_(limit), on_late_(std::move(on_late)), thread_([this] { watch(); }) {}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Watchdog::begin() {
  bool idle;
  {
    std::lock_guard lock(mutex_);
    idle = !begun_.has_value();
    begun_ = Clock::now();
  }
  if (idle) changed_.notify_all();
}

void Watchdog::end() {
  std::lock_guard lock(mutex_);
  begun_.reset();
}

void Watchdog::watch() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (!begun_) {
      changed_.wait(lock);
    } else if (Clock::now() - *begun_ < limit_) {
      // Not woken by end(): that would be a system call in every step. It looks again when the limit may have passed.
      changed_.wait_until(lock, *begun_ + limit_, [&] { return stop_; });
    } else {
      lock.unlock();
      on_late_();
      return;
    }
  }
}

}  // namespace lowkey
