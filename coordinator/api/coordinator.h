// The coordinator: the HTTP API in front, the replicas behind. Owns membership, admission, the requests in
// flight and the HTTP server; the process around it owns the io_context (one thread), the control plane and
// the metrics.
//
//   Coordinator coordinator(io, config, model, metrics);
//   auto plane = make_control_plane(io, options, coordinator.control_handlers());
//   coordinator.metrics_reporter().attach(*plane);
//   coordinator.start(); ... io.run() ... coordinator.drain();
#pragma once

#include <functional>
#include <memory>

#include "base/result.h"
#include "base/serve_config.h"
#include "coordinator/http/server.h"
#include "transport/control_plane.h"

namespace lowkey::transport {
class MetricsReporter;
}

namespace lowkey::coordinator {

class Membership;
struct ServedModel;

class Coordinator {
 public:
  // `io` and `metrics` outlive it. Of the settings it reads listen, port, api_key, max_queued and
  // drain_seconds; `limits` are those of the HTTP server (its address is taken from the settings). It must be
  // destroyed after the control plane's last callback and outside io.run().
  Coordinator(boost::asio::io_context& io, const ServeConfig& config,
              std::shared_ptr<const ServedModel> model, monitoring::Metrics& metrics,
              ServerOptions limits = {});
  ~Coordinator();

  transport::ControlHandlers control_handlers();

  // Who is there. For whoever handles the messages of those that join and leave, in front of
  // control_handlers().
  Membership& membership();

  // For the control plane to be attached to, so that its counters show on /metrics.
  transport::MetricsReporter& metrics_reporter();

  Status start();              // binds the HTTP address
  int port() const;            // after start()
  size_t in_flight() const;    // requests
  size_t connections() const;  // of clients

  // New requests are answered 503, those in flight get config.drain_seconds; the rest of them ends with an
  // error; all of them at once when it is called again. Then every leader is told Drain, the server stops,
  // and on_drained is called, on the I/O thread, once.
  void drain();
  std::function<void()> on_drained;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lowkey::coordinator
