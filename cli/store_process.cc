#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <csignal>

#include "base/bytes.h"
#include "base/exit_now.h"
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

namespace {

// Pages that were stored last are not yet on disk when the cluster ends: they get this long.
constexpr Duration kDiskFlush = std::chrono::seconds(2);

Result<kvstore::StoreService::Options> store_options(const Job& job) {
  kvstore::StoreService::Options options{.host_bytes = job.share.host_bytes};
  if (job.config.disk.empty()) return options;
  const uint64_t capacity = job.config.disk_bytes / std::max(1, job.share.stores);
  if (capacity < kMiB) {
    return Error{
        Code::kUsage,
        fmt::format("--disk-bytes: {} for {} store(s) of this host is too little for --disk, expected at "
                    "least 1 MiB each",
                    format_bytes(job.config.disk_bytes), job.share.stores),
        "disk-bytes"};
  }
  const std::vector<int> stores = job.ranks_of(Role::kStore);
  const auto number = std::find(stores.begin(), stores.end(), job.rank()) - stores.begin();
  spdlog::info("disk tier: {}/store-{}, {}", job.config.disk, number, format_bytes(capacity));
  options.disk = kvstore::DiskTier::Options{
      .log = {.folder = job.config.disk, .number = static_cast<int>(number), .capacity = capacity}};
  return options;
}

Status make_service(const Job& job, boost::asio::io_context& io, transport::DataPlane& data,
                    monitoring::Metrics& metrics, std::shared_ptr<kvstore::StoreService>& service) {
  LOWKEY_ASSIGN(options, store_options(job));
  LOWKEY_ASSIGN(made, kvstore::StoreService::make(io, data, metrics, options));
  service = std::move(made);
  return {};
}

// False when the disk hangs.
bool flush(kvstore::StoreService& service, boost::asio::io_context& io) {
  const Deadline deadline = Deadline::in(kDiskFlush);
  io.restart();
  while (!service.disk_idle() && !deadline.passed()) io.run_one_for(std::chrono::milliseconds(50));
  return service.close_disk(deadline);
}

}  // namespace

Ending run_store(const Job& job) {
  std::signal(SIGTERM,
              SIG_IGN);  // the coordinator drains and then ends the cluster; a store outlives its readers
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a limit of file sizes is a full disk, not the end of the store
  boost::asio::io_context io(1);
  monitoring::Metrics metrics({{"role", "store"}, {"rank", std::to_string(job.rank())}});
  transport::MetricsReporter reporter(metrics);
  std::shared_ptr<kvstore::StoreService> service;
  Ending ending;

  transport::ControlHandlers handlers;
  handlers.on_up = [&](const ConnectionPtr& peer) {
    service->on_up(peer);
    if (peer->peer().role == Role::kCoordinator) reporter.set_ready();
  };
  handlers.on_message = [&](const ConnectionPtr& peer, MessageType type, std::string_view body) {
    if (type != MessageType::kMetricsRequest || peer->peer().role != Role::kCoordinator) {
      return service->on_message(peer, type, body);
    }
    service->measure();
    (void)reporter.answer(*peer, body);
  };
  handlers.on_down = [&](const ConnectionPtr& peer, const Error& error) {
    service->on_down(peer);
    if (peer->peer().role != Role::kCoordinator) return;
    ending.orderly = error.code == Code::kCancelled;
    if (!ending.orderly)
      ending.status = Error{Code::kUnavailable, "lost the coordinator: " + error.message, {}};
    io.stop();
  };

  ClusterMember member(io, {.role = Role::kStore,
                            .reconnect = job.reconnect(),
                            .on_coordinator_lost = [&] { service->on_coordinator_lost(); },
                            .on_gave_up =
                                [&](const Error& error) {
                                  ending = {error, false};
                                  io.stop();
                                }});
  if (auto agreed = job.agree({}, "loading the model"); !agreed.ok()) return {agreed, true};
  auto transport = transport::make_ucx_transport(io, job.control_options({}), member.wrap(handlers));
  Status started = transport.ok() ? Status() : Status(transport.error());
  if (started.ok()) started = make_service(job, io, *transport->data, metrics, service);
  if (auto agreed = job.agree(started, "starting"); !agreed.ok()) return {agreed, true};
  service->adopt_folders();  // all stores of the job have opened theirs
  member.attach(*transport->control);
  reporter.attach(*transport->control);
  if (auto met = job.meet(transport->control->address(), io, *transport->control, &member); !met.ok()) {
    return {met.error(), false};
  }
  auto idle = boost::asio::make_work_guard(io);
  io.run();
  const bool flushed = flush(*service, io);
  if (ending.orderly) ending.orderly = !member.coordinator_was_lost() && job.part().ok();
  if (!flushed) {
    spdlog::warn("the disk does not answer; what it was given last may not be there");
    exit_now(exit_code(ending.status));  // whoever waits for its thread waits for the disk
  }
  return ending;
}

}  // namespace lowkey::cli
