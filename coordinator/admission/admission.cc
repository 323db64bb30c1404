#include "coordinator/admission/admission.h"

#include <algorithm>
#include <cmath>

#include "monitoring/metrics.h"

namespace lowkey::coordinator {

using monitoring::Metric;

namespace {
// Time constant of the rate: long enough for slow models, short enough to follow a change of load.
constexpr double kWindow = 10;
constexpr int kMaxRetryAfter = 60;
}  // namespace

Admission::Admission(size_t max_held, monitoring::Metrics& metrics) : max_held_(max_held), metrics_(metrics) {
  metrics_.set(Metric::kQueueLimit, static_cast<double>(max_held_));
  metrics_.set(Metric::kQueuedRequests, 0);
}

std::optional<Admission::Ticket> Admission::admit() {
  if (held_ >= max_held_) return std::nullopt;
  metrics_.set(Metric::kQueuedRequests, static_cast<double>(++held_));
  return std::optional<Ticket>(std::in_place, *this);
}

void Admission::release() {
  metrics_.set(Metric::kQueuedRequests, static_cast<double>(--held_));
  note_finished(Clock::now());
}

void Admission::note_finished(TimePoint now) {
  recent_ = rate(now) * kWindow + 1;
  recent_at_ = now;
}

double Admission::rate(TimePoint now) const {
  if (recent_ == 0) return 0;
  return recent_ / kWindow * std::exp(-seconds(now - recent_at_) / kWindow);
}

int Admission::retry_after_seconds(TimePoint now) const {
  if (recent_ == 0) return 1;
  const double wanted = std::max(1.0, std::ceil(static_cast<double>(max_held_) / 10));
  const double wait = std::ceil(wanted / std::max(rate(now), 1e-9));
  return static_cast<int>(std::clamp(wait, 1.0, static_cast<double>(kMaxRetryAfter)));
}

}  // namespace lowkey::coordinator
