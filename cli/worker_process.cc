#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <csignal>
#include <memory>
#include <optional>
#include <set>
#include <thread>

#include "base/exit_now.h"
#include "base/log.h"
#include "base/numa.h"
#include "base/trace.h"
#include "cli/cluster_member.h"
#include "cli/join.h"
#include "cli/leave_on_signal.h"
#include "cli/processes.h"
#include "cli/replica.h"
#include "coordinator/text/tokenizer.h"
#include "monitoring/metrics.h"
#include "transport/mpi/mpi_runtime.h"
#include "transport/ucx/ucx_transport.h"
#include "worker/device/device.h"
#include "worker/engine/engine.h"
#include "worker/engine/follower.h"
#include "worker/service/follower_service.h"
#include "worker/service/leader_service.h"

namespace lowkey::cli {
namespace {

using transport::Role;

// What the coordinator may need beyond the drain to let a replica go.
constexpr Duration kLeaveSlack = std::chrono::seconds(10);

// trace.json of rank 2 is trace.rank2.json.
Status begin_trace(const Job& job) {
  if (job.config.trace.empty()) return {};
  std::filesystem::path file = job.config.trace;
  file.replace_filename(
      fmt::format("{}.rank{}{}", file.stem().string(), job.cluster_rank(), file.extension().string()));
  return start_trace(file, fmt::format("worker {}.{}", job.self().replica, job.self().replica_rank));
}

// What the model's tokens add to a text; special ones, and rows of the embedding that are no tokens, nothing.
Result<worker::TokenTexts> token_texts(const std::string& model, int vocab_size) {
  LOWKEY_ASSIGN(tokenizer, coordinator::Tokenizer::load(model));
  worker::TokenTexts texts(vocab_size);
  for (int32_t id = 0; id < std::min(vocab_size, tokenizer->vocab_size()); ++id)
    if (!tokenizer->is_special(id)) texts[id] = tokenizer->token_bytes(id);
  return texts;
}

// The I/O thread of a worker: runs until stopped, joined by the destructor.
class IoThread {
 public:
  explicit IoThread(boost::asio::io_context& io)
      : io_(io), guard_(boost::asio::make_work_guard(io)), thread_([this] { io_.run(); }) {}
  ~IoThread() {
    io_.stop();
    thread_.join();
  }

 private:
  boost::asio::io_context& io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_;
  std::thread thread_;
};

// Of the leader of a replica of an open cluster; null elsewhere: the coordinator drains, and ends the
// cluster.
std::unique_ptr<LeaveOnSignal> leave_on_signal(const Job& job, boost::asio::io_context& io,
                                               ClusterMember& member, std::function<void()> end) {
  if (!job.open || job.self().replica_rank != 0) return nullptr;
  const int drain_seconds = job.config.drain_seconds;
  auto leave = std::make_unique<LeaveOnSignal>(
      io, std::chrono::seconds(drain_seconds) + kLeaveSlack,
      [&member, drain_seconds] {
        spdlog::info("leaving: draining for up to {} s", drain_seconds);
        return member.ask_to_leave(drain_seconds);
      },
      std::move(end));
  if (!job.joins()) spdlog::info("SIGTERM to pid {} lets replica {} leave", getpid(), job.self().replica);
  return leave;
}

// What the job and the replica say; how it ends is the caller's.
worker::WorkerService::Options service_options(const Job& job, const Replica& replica) {
  worker::WorkerService::Options options;
  options.replica = job.self().replica;
  options.replica_size = job.plan.tp;
  options.origin = {replica.model_fingerprint, replica.cache.fingerprint,
                    static_cast<uint16_t>(job.self().replica_rank), static_cast<uint16_t>(job.plan.tp),
                    static_cast<uint8_t>(replica.cache.pages.num_levels)};
  options.spill.levels = replica.cache.spill_levels;
  if (replica.cache.spilled)
    options.spill.transcoder =
        std::make_shared<kvstore::PageTranscoder>(replica.cache.pages, *replica.cache.spilled);
  options.spill.device = replica.device.backend->page_copies();
  options.require_transport = job.config.require_transport;
  if (!job.joins()) {
    const std::vector<int> stores = job.ranks_of(Role::kStore);
    options.stores.emplace(stores.begin(), stores.end());
  }
  return options;
}

// Of each GPU once: how its pages travel, and between whom its ranks' sums do.
void tell_gpu_paths(bool ucx_reaches, const transport::DeviceComm* collectives) {
  spdlog::info(
      "GPU pages travel through page-locked host memory, verified there (UCX {} GPU memory); sums {}",
      ucx_reaches ? "reaches" : "does not reach",
      collectives ? "over NCCL" : "through the host, if there is more than one rank");
}

[[noreturn]] void end_rank(const Error& reason) {
  spdlog::error("{}: this rank ends", reason.message);
  exit_now(4);
}

// Serves with a LeaderService and an Engine, or a FollowerService and a Follower.
template <class Service, class MakeEngine>
Ending serve(const Job& job, Replica& replica, monitoring::Metrics& metrics, MakeEngine make_engine) {
  boost::asio::io_context io(1);
  std::atomic<bool> orderly = false;
  Service* running = nullptr;
  worker::WorkerService::Options options = service_options(job, replica);
  options.on_end = [&](const Error& reason) {
    if (reason.code == Code::kCancelled) {
      orderly = true;
      return running->stop();
    }
    end_rank(reason);  // the step thread may be in a collective with the lost rank: nobody can be waited for
  };
  ClusterMember* ties = nullptr;
  options.on_refused = [&](int rank) { ties->refuse_store(rank); };
  Service service(io, metrics, std::move(options));
  running = &service;
  ClusterMember member(io, {.role = Role::kWorker,
                            .reconnect = job.reconnect(),
                            .on_coordinator_lost = [&] { service.forget_coordinator(); },
                            .on_stores = [&](const std::set<int>& ranks) { service.expect_stores(ranks); },
                            .on_gave_up = end_rank});
  std::optional<transport::UcxTransport> transport;
  ties = &member;
  const Status started = job.together("starting", [&]() -> Status {
    LOWKEY_ASSIGN(made, transport::make_ucx_transport(io, job.control_options(fingerprints(replica)),
                                                      member.wrap(service.handlers())));
    transport.emplace(std::move(made));
    return {};
  });
  if (!started.ok()) return {started, true};
  member.attach(*transport->control);
  service.attach(*transport->control, *transport->data);
  if (auto met = job.meet(transport->control->address(), io, *transport->control, &member); !met.ok())
    return {met, false};
  const auto leave = leave_on_signal(job, io, member, [&] {
    orderly = true;
    service.stop();
    transport->control->shutdown();  // the followers end with it
  });

  auto collectives =
      worker::make_collectives(job.devices.survey, job.devices.choice, *job.peers, *replica.device.backend,
                               Deadline::in(std::chrono::seconds(job.config.step_deadline_seconds)));
  if (!collectives.ok()) return {collectives.error(), false};
  if (job.devices.cuda) tell_gpu_paths(transport->reaches_gpu_memory, collectives->get());

  const worker::EnginePorts ports = service.ports();
  auto engine = make_engine(ports, *job.peers, collectives->get());
  service.set_engine(*engine);
  Status ended;
  {
    const IoThread io_thread(io);
    ended = service.run(std::chrono::seconds(job.config.step_deadline_seconds + 10));
    if (const Status written = write_trace(); !written.ok()) spdlog::warn("{}", written.error().message);
    // Stores and followers should know a replica that leaves from one that is lost.
    if (job.joins() || member.was_let_go()) boost::asio::post(io, [&] { transport->control->shutdown(); });
    // The rest of the job stays when one of the cluster's first replicas leaves.
    const bool complete = job.joins() || !(member.coordinator_was_lost() || member.was_let_go());
    if (ended.ok() && orderly) orderly = complete && job.part().ok();
  }
  return {ended, ended.ok() && orderly};
}

}  // namespace

Ending run_worker(const Job& given) {
  Job job = given;
  std::signal(SIGTERM, SIG_IGN);  // the coordinator drains, and then ends the cluster
  std::signal(SIGINT, SIG_IGN);
  if (!job.devices.cuda) {
    const auto nodes = place_worker(job.share.worker_index, job.share.workers);
    if (!nodes.empty()) spdlog::info("on NUMA node(s) {}", fmt::join(nodes, ", "));
  }
  Replica replica;
  const Status loaded = job.together("loading the model", [&]() -> Status {
    LOWKEY_ASSIGN(made, load_replica(job));
    replica = std::move(made);
    return begin_trace(job);
  });
  if (!loaded.ok()) return {loaded, true};
  if (job.joins()) {
    if (auto joined = join_cluster(job, fingerprints(replica)); !joined.ok()) return {joined, true};
    init_logging(fmt::format("worker {}.{}", job.self().replica, job.self().replica_rank),
                 job.config.log_level);
    if (job.rank() == 0)
      spdlog::info("joined as replica {}; SIGTERM to pid {} leaves", job.self().replica, getpid());
  }
  monitoring::Metrics metrics({{"role", "worker"}, {"rank", std::to_string(job.cluster_rank())}});
  report_replica(job, replica, metrics);
  worker::ExecutorOptions executor;
  executor.model_fingerprint = replica.model_fingerprint;
  executor.layout_fingerprint = replica.cache.fingerprint;
  executor.backend = replica.device.backend.get();
  executor.step_deadline = std::chrono::seconds(job.config.step_deadline_seconds);
  if (job.self().replica_rank == 0) {
    metrics.declare(monitoring::Feeder::kLeader);
    return serve<worker::LeaderService>(
        job, replica, metrics,
        [&](const auto& ports, transport::HostComm& comm, transport::DeviceComm* collectives) {
          worker::EngineOptions options;
          executor.collectives = collectives;
          options.executor = executor;
          options.token_texts = [model = job.config.model, size = replica.config.vocab_size] {
            return token_texts(model, size);
          };
          // One replica may get all that the coordinator admits.
          options.max_waiting = std::max<size_t>(options.max_waiting, job.config.max_queued);
          options.min_levels = job.config.min_levels;
          options.spill_levels = replica.cache.spill_levels;
          options.scheduler = {.step_tokens = job.config.step_tokens,
                               .max_batch = job.config.max_batch,
                               .ladder = job.config.pressure == "ladder"};
          return std::make_unique<worker::Engine>(options, *replica.model, *replica.memory, comm, ports,
                                                  metrics);
        });
  }
  return serve<worker::FollowerService>(
      job, replica, metrics,
      [&](const auto& ports, transport::HostComm& comm, transport::DeviceComm* collectives) {
        executor.collectives = collectives;
        return std::make_unique<worker::Follower>(executor, *replica.model, *replica.memory, comm, ports,
                                                  metrics);
      });
}

}  // namespace lowkey::cli
