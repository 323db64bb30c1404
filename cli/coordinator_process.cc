#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <csignal>
#include <set>

#include "base/log.h"
#include "cli/processes.h"
#include "coordinator/api/coordinator.h"
#include "coordinator/api/served_model.h"
#include "monitoring/metrics.h"
#include "transport/metrics_reporter.h"
#include "transport/ucx/ucx_transport.h"

namespace lowkey::cli {
namespace {

using transport::ConnectionPtr;
using transport::Role;

// With no replica left and none that could join, a supervisor should get the chance to start the cluster
// anew; until then /ready and /metrics tell what happened.
constexpr auto kNoReplicaGrace = std::chrono::seconds(10);

// A connection that closes has a second to get its goodbye out (transport/core/session.cc).
constexpr auto kGoodbyes = std::chrono::milliseconds(1100);

// Watches the replicas from outside the coordinator, and ends the process when there is nothing left to
// coordinate.
class ReplicaWatch {
 public:
  ReplicaWatch(boost::asio::io_context& io, std::function<void()> on_none_left)
      : timer_(io), on_none_left_(std::move(on_none_left)) {}

  transport::ControlHandlers wrap(transport::ControlHandlers inner) {
    transport::ControlHandlers outer = inner;
    outer.on_up = [this, inner](const ConnectionPtr& peer) {
      if (peer->peer().role == Role::kWorker) ++workers_[peer->peer().replica];
      if (inner.on_up) inner.on_up(peer);
    };
    outer.on_down = [this, inner](const ConnectionPtr& peer, const Error& error) {
      if (error.code != Code::kCancelled && !ending_) ++losses_;
      if (peer->peer().role == Role::kWorker) lose(peer->peer().replica);
      if (inner.on_down) inner.on_down(peer, error);
    };
    return outer;
  }

  int losses() const { return losses_; }
  // The cluster is ending on purpose: peers that leave from now on are not lost.
  void cancel() {
    ending_ = true;
    timer_.cancel();
  }

 private:
  // A replica that has lost a rank does not come back.
  void lose(int replica) {
    broken_.insert(replica);
    if (ending_ || broken_.size() < workers_.size()) return;
    timer_.expires_after(kNoReplicaGrace);
    timer_.async_wait([this](boost::system::error_code failure) {
      if (!failure) on_none_left_();
    });
  }

  boost::asio::steady_timer timer_;
  const std::function<void()> on_none_left_;
  std::map<int, int> workers_;
  std::set<int> broken_;
  int losses_ = 0;
  bool ending_ = false;
};

}  // namespace

Ending run_coordinator(const Job& job) {
  boost::asio::io_context io(1);
  monitoring::Metrics metrics({{"role", "coordinator"}, {"rank", std::to_string(job.rank())}});
  Ending ending;
  auto model = coordinator::ServedModel::load(job.config.model);
  if (auto agreed = job.agree(model.ok() ? Status() : Status(model.error()), "loading the model");
      !agreed.ok()) {
    return {agreed, true};
  }
  coordinator::Coordinator front(io, job.config, *model, metrics);
  ReplicaWatch watch(io, [&] {
    ending.status =
        Error{Code::kUnavailable, "no replica is left, and none can join: ending the cluster", {}};
    io.stop();
  });
  auto transport =
      transport::make_ucx_transport(io, job.control_options({}), watch.wrap(front.control_handlers()));
  Status started = transport.ok() ? front.start() : Status(transport.error());
  if (auto agreed = job.agree(started, "starting"); !agreed.ok()) return {agreed, true};
  front.metrics_reporter().attach(*transport->control);
  if (auto met = job.meet(transport->control->address(), io, *transport->control); !met.ok()) {
    return {met.error(), false};
  }

  boost::asio::signal_set signals(io, SIGTERM, SIGINT);
  signals.async_wait([&](boost::system::error_code failure, int number) {
    if (failure) return;
    spdlog::info("signal {}: draining for up to {} s", number, job.config.drain_seconds);
    front.drain();
  });
  boost::asio::steady_timer goodbyes(io);
  front.on_drained = [&] {
    signals.cancel();
    watch.cancel();
    transport->control->shutdown();  // orderly: everybody ends
    goodbyes.expires_after(kGoodbyes);
    goodbyes.async_wait([&](boost::system::error_code) { io.stop(); });
  };
  spdlog::info("listening on http://{}:{} (pid {}); ready when /ready answers 200", job.config.listen,
               front.port(), getpid());
  io.run();
  ending.orderly = ending.status.ok() && watch.losses() == 0 && job.part().ok();
  return ending;
}

}  // namespace lowkey::cli
