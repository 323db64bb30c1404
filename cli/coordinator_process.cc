#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <csignal>
#include <optional>
#include <utility>

#include "base/log.h"
#include "cli/cluster_roster.h"
#include "cli/model_shape.h"
#include "cli/processes.h"
#include "coordinator/api/coordinator.h"
#include "coordinator/api/served_model.h"
#include "monitoring/metrics.h"
#include "transport/metrics_reporter.h"
#include "transport/ucx/ucx_transport.h"

namespace lowkey::cli {
namespace {

// A connection that closes has a second to get its goodbye out (transport/core/session.cc).
constexpr auto kGoodbyes = std::chrono::milliseconds(1100);

// SIGTERM or SIGINT drains; once more, and what still runs ends.
class DrainOnSignal {
 public:
  DrainOnSignal(boost::asio::io_context& io, int seconds, coordinator::Coordinator& front)
      : seconds_(seconds), front_(front), signals_(io, SIGTERM, SIGINT) {
    wait();
  }
  void cancel() { signals_.cancel(); }

 private:
  void wait() {
    signals_.async_wait([this](boost::system::error_code failure, int number) {
      if (failure) return;
      if (std::exchange(draining_, true))
        spdlog::info("signal {} again: what still runs ends now", number);
      else
        spdlog::info("signal {}: draining for up to {} s", number, seconds_);
      front_.drain();
      wait();
    });
  }

  const int seconds_;
  coordinator::Coordinator& front_;
  boost::asio::signal_set signals_;
  bool draining_ = false;
};

}  // namespace

Ending run_coordinator(const Job& job) {
  boost::asio::io_context io(1);
  monitoring::Metrics metrics({{"role", "coordinator"}, {"rank", std::to_string(job.rank())}});
  Ending ending;
  Hash128 fingerprint;
  std::shared_ptr<const coordinator::ServedModel> model;
  const Status loaded = job.together("loading the model", [&]() -> Status {
    LOWKEY_ASSIGN(config, served_config(job.config));
    LOWKEY_ASSIGN(served, coordinator::ServedModel::load(
                              job.config.model, {.max_tokens = static_cast<uint32_t>(config.max_positions),
                                                 .id = job.config.served_model_name,
                                                 .chat_template = job.config.chat_template}));
    model = std::move(served);
    LOWKEY_ASSIGN(found, worker::model_fingerprint(job.config.model));
    fingerprint = worker::held_fingerprint(found, config);
    return {};
  });
  if (!loaded.ok()) return {loaded, true};
  transport::PeerInfo self;
  self.model_fingerprint = fingerprint;  // whoever dials must serve the model whose tokenizer is here
  coordinator::Coordinator front(io, job.config, model, metrics);
  ClusterRoster roster(io, front.membership(),
                       {.job_ranks = static_cast<int>(job.plan.ranks.size()),
                        .job_replicas = job.plan.replicas,
                        .open = job.open,
                        .alone = job.is_alone(),
                        .reconnect = job.reconnect()});
  roster.on_none_left = [&] {
    ending.status =
        Error{Code::kUnavailable, "no replica is left, and none can join: ending the cluster", {}};
    io.stop();
  };
  std::optional<transport::UcxTransport> transport;
  const Status started = job.together("starting", [&]() -> Status {
    LOWKEY_ASSIGN(made, transport::make_ucx_transport(io, job.control_options(self),
                                                      roster.wrap(front.control_handlers())));
    transport.emplace(std::move(made));
    return front.start();
  });
  if (!started.ok()) return {started, true};
  front.metrics_reporter().attach(*transport->control);
  if (auto met = job.meet(transport->control->address(), io, *transport->control, nullptr); !met.ok())
    return {met, false};

  DrainOnSignal signals(io, job.config.drain_seconds, front);
  boost::asio::steady_timer goodbyes(io);
  front.on_drained = [&] {
    signals.cancel();
    roster.end();
    transport->control->shutdown();  // orderly: everybody ends
    goodbyes.expires_after(kGoodbyes);
    goodbyes.async_wait([&](boost::system::error_code) { io.stop(); });
  };
  if (job.config.cluster_port != 0) {
    spdlog::info("cluster port: {}{}", transport->control->address(),
                 job.open ? "" : "; nobody can join, because --cluster-secret was not given");
  }
  spdlog::info("listening on http://{}:{} (pid {}); ready when /ready answers 200", job.config.listen,
               front.port(), getpid());
  io.run();
  ending.orderly = ending.status.ok() && roster.departures() == 0 && job.part().ok();
  return ending;
}

}  // namespace lowkey::cli
