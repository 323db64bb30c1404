// A process's metrics, brought up to date (process statistics, transport counters) whenever somebody asks for them.
// Thread rule: the I/O thread.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "monitoring/process_stats.h"
#include "transport/control_plane.h"

namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::transport {

class MetricsReporter {
 public:
  explicit MetricsReporter(monitoring::Metrics& metrics) : metrics_(metrics), process_(metrics) {}

  void attach(const ControlPlane& plane) { plane_ = &plane; }
  void set_ready() { process_.set_ready(); }
  std::string serialize();                                           // for monitoring::render_page
  Status answer(ControlConnection& peer, std::string_view request);  // MetricsRequest -> MetricsReply

 private:
  void update_transport(const TransportStats& now);
  void update_paths(const TransportStats& now);

  monitoring::Metrics& metrics_;
  monitoring::ProcessMetrics process_;
  const ControlPlane* plane_ = nullptr;
  TransportStats seen_;  // what the counters already hold
};

}  // namespace lowkey::transport
