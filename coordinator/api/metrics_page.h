// /metrics: asks every peer for its metrics and renders them with our own as one Prometheus page. A peer that
// has not answered when the deadline passes is left out and shown as lowkey_rank_up 0. I/O thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "coordinator/http/exchange.h"
#include "transport/control_plane.h"

namespace lowkey::wire {
class MetricsReply;
}
namespace lowkey::transport {
class MetricsReporter;
}  // namespace lowkey::transport

namespace lowkey::coordinator {

class Membership;

class MetricsPage {
 public:
  static constexpr Duration kDeadline = std::chrono::seconds(1);

  // All of these outlive it.
  MetricsPage(boost::asio::io_context& io, Membership& membership, transport::MetricsReporter& own);
  ~MetricsPage();

  // Requests that arrive while one is being gathered share its page.
  void serve(ExchangePtr exchange);
  void on_reply(const transport::ConnectionPtr& connection, const wire::MetricsReply& reply);
  void on_down(const transport::ConnectionPtr& connection);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace lowkey::coordinator
