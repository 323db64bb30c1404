#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <csignal>
#include <memory>
#include <optional>

#include "base/bytes.h"
#include "base/exit_now.h"
#include "base/log.h"
#include "cli/cluster_member.h"
#include "cli/join.h"
#include "cli/leave_on_signal.h"
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
// A connection that closes has a second to get its goodbye out (transport/core/session.cc).
constexpr Duration kGoodbyes = std::chrono::milliseconds(1100);

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
  // Those that join have the numbers behind those of the cluster's own job.
  const std::vector<int> stores = job.ranks_of(Role::kStore);
  const auto number =
      job.joins() ? job.cluster_rank() : std::find(stores.begin(), stores.end(), job.rank()) - stores.begin();
  spdlog::info("disk tier: {}/store-{}, {}", job.config.disk, number, format_bytes(capacity));
  // When the cluster was started again, the others have taken over what an earlier one of its number left.
  options.disk = kvstore::DiskTier::Options{.log = {.folder = job.config.disk,
                                                    .number = static_cast<int>(number),
                                                    .or_beside = job.joins(),
                                                    .capacity = capacity}};
  return options;
}

Status make_service(const Job& job, boost::asio::io_context& io, transport::DataPlane& data,
                    monitoring::Metrics& metrics, std::shared_ptr<kvstore::StoreService>& service) {
  LOWKEY_ASSIGN(options, store_options(job));
  LOWKEY_ASSIGN(made, kvstore::StoreService::make(io, data, metrics, options));
  service = std::move(made);
  return {};
}

// Null where the coordinator ends the cluster. No worker begins anything new with a store that leaves, and it
// ends when what is under way has.
std::unique_ptr<LeaveOnSignal> leave_on_signal(const Job& job, boost::asio::io_context& io,
                                               ClusterMember& member, kvstore::StoreService& service) {
  if (!job.open) return nullptr;
  const int drain_seconds = job.config.drain_seconds;
  const auto end = [&io] { io.stop(); };
  auto leave = std::make_unique<LeaveOnSignal>(
      io, std::chrono::seconds(drain_seconds),
      [&member, &service, drain_seconds, end] {
        spdlog::info("leaving: what is under way has {} s", drain_seconds);
        (void)member.ask_to_leave(drain_seconds);
        service.leave(end);
        return true;
      },
      end);
  if (!job.joins()) spdlog::info("SIGTERM to pid {} lets this store leave", getpid());
  return leave;
}

// The others should know a store that leaves from one that is lost.
void say_goodbye(transport::ControlPlane& control, boost::asio::io_context& io) {
  control.shutdown();
  io.restart();
  io.run_for(kGoodbyes);
}

void ignore_signals() {
  std::signal(SIGTERM, SIG_IGN);  // the coordinator drains and ends the cluster; a store outlives its readers
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a limit of file sizes is a full disk, not the end of the store
}

// While others load.
Status take_place(Job& job) {
  if (!job.joins()) return job.together("loading the model", [] { return Status(); });
  LOWKEY_TRY(join_cluster(job, {}));
  spdlog::info("joined as rank {}; SIGTERM to pid {} leaves", job.cluster_rank(), getpid());
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

Ending run_store(const Job& given) {
  Job job = given;
  ignore_signals();
  if (auto placed = take_place(job); !placed.ok()) return {placed, true};
  boost::asio::io_context io(1);
  monitoring::Metrics metrics({{"role", "store"}, {"rank", std::to_string(job.cluster_rank())}});
  transport::MetricsReporter reporter(metrics);
  std::shared_ptr<kvstore::StoreService> service;
  Ending ending;
  bool parting = false;  // of its own accord

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
    if (!parting) io.stop();
  };

  ClusterMember member(io, {.role = Role::kStore,
                            .reconnect = job.reconnect(),
                            .on_coordinator_lost = [&] { service->on_coordinator_lost(); },
                            .on_gave_up =
                                [&](const Error& error) {
                                  ending = {error, false};
                                  io.stop();
                                }});
  std::optional<transport::UcxTransport> transport;
  const Status started = job.together("starting", [&]() -> Status {
    LOWKEY_ASSIGN(made, transport::make_ucx_transport(io, job.control_options({}), member.wrap(handlers)));
    transport.emplace(std::move(made));
    return make_service(job, io, *transport->data, metrics, service);
  });
  if (!started.ok()) return {started, true};
  service->adopt_folders();  // all stores of the job have opened theirs
  member.attach(*transport->control);
  reporter.attach(*transport->control);
  if (auto met = job.meet(transport->control->address(), io, *transport->control, &member); !met.ok())
    return {met, false};
  const auto leave = leave_on_signal(job, io, member, *service);
  auto idle = boost::asio::make_work_guard(io);
  io.run();
  parting = leave && leave->asked();
  if (parting) say_goodbye(*transport->control, io);
  const bool flushed = flush(*service, io);
  // The rest of the job stays when one of the cluster's first stores leaves.
  const bool complete = job.joins() || !(member.coordinator_was_lost() || parting);
  if (ending.orderly) ending.orderly = complete && job.part().ok();
  if (!flushed) {
    spdlog::warn("the disk does not answer; what it was given last may not be there");
    exit_now(exit_code(ending.status));  // whoever waits for its thread waits for the disk
  }
  return ending;
}

}  // namespace lowkey::cli
