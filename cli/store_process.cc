#include <boost/asio/io_context.hpp>
#include <csignal>

#include "base/log.h"
#include "cli/cluster_member.h"
#include "cli/processes.h"
#include "kvstore/service/store_service.h"
#include "monitoring/metrics.h"
#include "transport/metrics_reporter.h"
#include "transport/ucx/ucx_transport.h"

namespace lowkey::cli {

using transport::ConnectionPtr;
using transport::MessageType;
using transport::Role;

Ending run_store(const Job& job) {
  std::signal(SIGTERM,
              SIG_IGN);  // the coordinator drains and then ends the cluster; a store outlives its readers
  std::signal(SIGINT, SIG_IGN);
  boost::asio::io_context io(1);
  monitoring::Metrics metrics({{"role", "store"}, {"rank", std::to_string(job.rank())}});
  transport::MetricsReporter reporter(metrics);
  std::shared_ptr<kvstore::StoreService> service;
  Ending ending;

  transport::ControlHandlers handlers;
  handlers.on_up = [&](const ConnectionPtr& peer) {
    if (peer->peer().role == Role::kWorker) service->on_up(peer);
    if (peer->peer().role == Role::kCoordinator) reporter.set_ready();
  };
  handlers.on_message = [&](const ConnectionPtr& peer, MessageType type, std::string_view body) {
    if (peer->peer().role == Role::kWorker) return service->on_message(peer, type, body);
    if (type == MessageType::kMetricsRequest) (void)reporter.answer(*peer, body);
  };
  handlers.on_down = [&](const ConnectionPtr& peer, const Error& error) {
    if (peer->peer().role == Role::kWorker) service->on_down(peer);
    if (peer->peer().role != Role::kCoordinator) return;
    ending.orderly = error.code == Code::kCancelled;
    if (!ending.orderly)
      ending.status = Error{Code::kUnavailable, "lost the coordinator: " + error.message, {}};
    io.stop();
  };

  ClusterMember member(io, {.role = Role::kStore,
                            .reconnect = job.reconnect(),
                            .on_gave_up = [&](const Error& error) {
                              ending = {error, false};
                              io.stop();
                            }});
  if (auto agreed = job.agree({}, "loading the model"); !agreed.ok()) return {agreed, true};
  auto transport = transport::make_ucx_transport(io, job.control_options({}), member.wrap(handlers));
  Status started = transport.ok() ? Status() : Status(transport.error());
  if (started.ok()) {
    auto made =
        kvstore::StoreService::make(io, *transport->data, metrics, {.host_bytes = job.share.host_bytes});
    if (made.ok())
      service = *made;
    else
      started = made.error();
  }
  if (auto agreed = job.agree(started, "starting"); !agreed.ok()) return {agreed, true};
  member.attach(*transport->control);
  reporter.attach(*transport->control);
  if (auto met = job.meet(transport->control->address(), io, *transport->control, &member); !met.ok()) {
    return {met.error(), false};
  }
  auto idle = boost::asio::make_work_guard(io);
  io.run();
  if (ending.orderly) ending.orderly = !member.coordinator_was_lost() && job.part().ok();
  return ending;
}

}  // namespace lowkey::cli
