// The bound on requests that the coordinator holds, from being parsed until answered, and the advice to those
// it turns away. I/O thread only.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <utility>

#include "base/deadline.h"

namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::coordinator {

class Admission {
 public:
  // A place in the queue; gives it back when destroyed. Must not outlive the Admission.
  class Ticket {
   public:
    explicit Ticket(Admission& admission) : admission_(&admission) {}
    Ticket(Ticket&& other) noexcept : admission_(std::exchange(other.admission_, nullptr)) {}
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket() {
      if (admission_) admission_->release();
    }

   private:
    Admission* admission_;
  };

  // Feeds lowkey_queued_requests and lowkey_queue_limit_requests.
  Admission(size_t max_held, monitoring::Metrics& metrics);

  std::optional<Ticket> admit();  // empty: full
  size_t held() const { return held_; }
  size_t limit() const { return max_held_; }

  // Seconds for Retry-After, 1..60: when a tenth of the places should be free again at the rate at which
  // requests were finished lately; 1 while nothing is known.
  int retry_after_seconds(TimePoint now = Clock::now()) const;
  // Tells the rate; release() does so itself.
  void note_finished(TimePoint now);

 private:
  void release();
  double rate(TimePoint now) const;  // finished requests per second, exponentially forgotten

  const size_t max_held_;
  monitoring::Metrics& metrics_;
  size_t held_ = 0;
  double recent_ = 0;  // finished requests, each weighing exp(-age / kWindow)
  TimePoint recent_at_{};
};

}  // namespace lowkey::coordinator
