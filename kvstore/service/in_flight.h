// How many bytes are on their way, as a gauge. Any thread.
#pragma once

#include <cstdint>
#include <mutex>

#include "monitoring/metrics.h"

namespace lowkey::kvstore {

class InFlight {
 public:
  InFlight(monitoring::Metrics& metrics, monitoring::Metric gauge) : metrics_(&metrics), gauge_(gauge) {
    change(0);
  }

  void change(int64_t bytes) {
    std::lock_guard lock(mutex_);
    bytes_ += bytes;
    if (metrics_) metrics_->set(gauge_, static_cast<double>(bytes_));
  }
  // Nobody looks any more: memory that the transport holds on to may come back after the metrics are gone.
  void detach() {
    std::lock_guard lock(mutex_);
    metrics_ = nullptr;
  }

 private:
  std::mutex mutex_;
  monitoring::Metrics* metrics_;
  const monitoring::Metric gauge_;
  int64_t bytes_ = 0;
};

}  // namespace lowkey::kvstore
