#include "cli/job.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <map>
#include <sstream>

#include "base/bytes.h"
#include "base/exit_now.h"
#include "base/log.h"
#include "cli/cluster_member.h"
#include "cli/listen_host.h"
#include "cli/roll_call.h"
#include "cli/serve_options.h"
#include "transport/core/path_probe.h"
#include "transport/host_identity.h"
#include "transport/mpi/mpi_runtime.h"

namespace lowkey::cli {
namespace {

using transport::Role;

constexpr auto kHearDeadline = std::chrono::seconds(10);
// The peer may first have to meet the other ranks of its replica on their GPUs.
constexpr auto kConnectDeadline = std::chrono::seconds(10);
constexpr auto kPartDeadline = std::chrono::seconds(5);

// An error that several ranks find: one of them tells it.
Error told_once(Error error, bool here) {
  if (!here) error.message.clear();
  return error;
}

std::string make_secret() {
  std::array<unsigned char, 32> random{};
  LOWKEY_CHECK(getrandom(random.data(), random.size(), 0) == static_cast<ssize_t>(random.size()),
               "no random bytes");
  std::string hex;
  for (const unsigned char byte : random) hex += fmt::format("{:02x}", byte);
  return hex;
}

void print_plan(const Job& job) {
  spdlog::info("settings: {}", describe(job.config));
  if (job.is_alone()) return spdlog::info("a coordinator alone: workers and stores come to its cluster port");
  if (job.joins()) {
    spdlog::info("{} rank(s): one {} that joins the cluster of {}", job.plan.ranks.size(),
                 job.plan.stores > 0 ? "store" : "replica", job.config.join);
  } else {
    spdlog::info("{} ranks: coordinator = rank 0, {} replica(s) x {} worker(s), {} store(s)",
                 job.plan.ranks.size(), job.plan.replicas, job.plan.tp, job.plan.stores);
  }
  const std::string stores =
      fmt::format("{} host tier / {} store(s) = {} each", format_bytes(job.config.host_bytes),
                  job.share.stores, format_bytes(job.share.host_bytes));
  if (job.devices.cuda) {
    const std::string kv = job.config.kv_bytes == 0
                               ? "what the weights leave"
                               : fmt::format("{} of KV cache", format_bytes(job.config.kv_bytes));
    return spdlog::info("workers compute on GPUs: {} on each of them; {}", kv, stores);
  }
  spdlog::info("this host: {} KV cache / {} worker(s) = {} each; {}; {} compute thread(s) per worker",
               format_bytes(job.share.kv_bytes * std::max(1, job.share.workers)), job.share.workers,
               format_bytes(job.share.kv_bytes), stores, job.share.threads);
}

}  // namespace

std::vector<int> Job::ranks_of(Role role) const {
  std::vector<int> ranks;
  for (size_t rank = 0; rank < plan.ranks.size(); ++rank) {
    if (plan.ranks[rank].role == role) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

Result<Job> Job::form(transport::MpiRuntime& mpi, const ServeConfig& config, std::optional<Role> named) {
  Job job;
  job.mpi = &mpi;
  job.world = mpi.world();
  job.config = config;
  LOWKEY_TRY(job.take_roles(named));
  LOWKEY_ASSIGN(hosts, job.hear(transport::host_identity(), "telling the hosts"));
  LOWKEY_TRY(job.choose_devices(hosts));
  const int gpu_sharers = job.devices.cuda ? job.devices.choice.sharers : 0;
  job.share = HostShare::divide(config, job.plan, hosts, job.rank(), gpu_sharers);
  LOWKEY_TRY(job.together("dividing its host's budgets", [&] {
    const bool first_of_host = std::ranges::find(hosts, hosts[job.rank()]) - hosts.begin() == job.rank();
    return first_of_host ? check_host(config, job.plan, job.share) : Status();
  }));
  job.listen_host = listen_host_of(config, hosts);
  LOWKEY_TRY(job.share_secret());
  if (job.rank() == 0) print_plan(job);
  return job;
}

Status Job::take_roles(std::optional<Role> named) {
  LOWKEY_ASSIGN(roles, hear(named ? transport::to_string(*named) : "", "telling the roles"));
  std::vector<std::optional<Role>> named_roles;
  for (const std::string& role : roles) {
    named_roles.emplace_back();
    for (const Role known : {Role::kCoordinator, Role::kWorker, Role::kStore}) {
      if (role == transport::to_string(known)) named_roles.back() = known;
    }
  }
  auto made = ClusterPlan::make(config, named_roles);
  if (!made.ok()) return told_once(made.error(), rank() == 0);
  plan = *std::move(made);
  const bool worker = self().role == Role::kWorker;
  LOWKEY_ASSIGN(comm, mpi->split(worker ? self().replica : -1, self().replica_rank));
  peers = std::move(comm);
  return {};
}

// Every worker looks for devices, all ranks hear what was found, and come to the same answer.
Status Job::choose_devices(const std::vector<std::string>& hosts) {
  if (config.device == "cpu") return {};
  const bool worker = self().role == Role::kWorker;
  LOWKEY_TRY(together("looking for devices", [&] {
    if (worker) devices.survey = worker::DeviceSurvey::make();
    return Status();
  }));
  const auto& mine = devices.survey.devices;
  LOWKEY_ASSIGN(counts, hear(worker ? std::to_string(mine.size()) : "", "counting devices"));
  const auto lacking = std::ranges::find(counts, "0") - counts.begin();
  const bool tells = lacking == rank();
  if (lacking < world->size()) {
    if (config.device == "cuda")
      return told_once({Code::kUnavailable, "--device cuda: " + devices.survey.reason, "device"}, tells);
    if (tells) spdlog::info("no GPU ({}): workers compute on the CPU", devices.survey.reason);
    return {};
  }
  const auto workers = ranks_of(Role::kWorker);
  devices.cuda = !workers.empty();
  if (!devices.cuda) return {};
  int index = 0;  // among the workers of this host
  for (const int other : workers) index += other < rank() && hosts[other] == hosts[rank()];
  devices.choice.index = worker ? index % static_cast<int>(mine.size()) : 0;
  LOWKEY_ASSIGN(uuids, hear(worker ? mine[devices.choice.index].uuid : "", "choosing devices"));
  devices.choice.sharers = static_cast<int>(std::ranges::count(uuids, uuids[rank()]));
  return find_free_bytes();
}

Status Job::find_free_bytes() {
  const bool worker = self().role == Role::kWorker;
  uint64_t free = 0;
  LOWKEY_TRY(together("opening the devices", [&]() -> Status {
    if (!worker) return {};
    const auto& device = devices.survey.devices[devices.choice.index];
    LOWKEY_ASSIGN(bytes, devices.survey.module->library->free_bytes(device.index));
    free = bytes / devices.choice.sharers;
    return {};
  }));
  LOWKEY_ASSIGN(shares, hear(worker ? std::to_string(free) : "", "measuring devices"));
  devices.free_bytes = UINT64_MAX;
  for (const int other : ranks_of(Role::kWorker))
    devices.free_bytes = std::min<uint64_t>(devices.free_bytes, std::stoull(shares[other]));
  return {};
}

Status Job::share_secret() {
  const bool given = !config.cluster_secret.empty();
  if (!given && (joins() || is_alone())) {
    return told_once(
        {Code::kUsage, "--cluster-secret: that of the cluster must be given to processes that come later",
         "cluster-secret"},
        rank() == 0);
  }
  // Made by rank 0 unless given, and shared over MPI's own connections, as is whether somebody else can know
  // it and where rank 0 listens.
  std::string mine;
  if (rank() == 0) {
    mine = (joins() || (config.cluster_port != 0 && given) ? "1" : "0") +
           (given ? config.cluster_secret : make_secret());
  }
  LOWKEY_ASSIGN(secrets, hear(mine, "sharing the secret"));
  open = secrets[0][0] == '1';
  secret = secrets[0].substr(1);
  if (secret.size() < 16) {
    const std::string found = fmt::format("expected at least 16 characters, found {}", secret.size());
    return told_once({Code::kUsage, "--cluster-secret: " + found, "cluster-secret"}, rank() == 0);
  }
  return {};
}

Result<std::vector<std::string>> Job::hear(const std::string& mine, const char* phase) const {
  auto all = world->all_gather(mine, Deadline::in(kHearDeadline));
  if (all.ok()) return all;
  return Error{Code::kUnavailable, fmt::format("while {}: {}", phase, all.error().message), {}};
}

Status Job::together(const char* phase, const std::function<Status()>& work) const {
  const RollCall call{.phase = phase, .on_cut_off = [](const Error& reason) {
                        if (!reason.message.empty()) spdlog::error("{}", reason.message);
                        exit_now(exit_code(reason));
                      }};
  // Said before the others hear of the failure: without --enable-recovery mpirun ends this rank, too, as soon
  // as one of them has ended.
  const Roll roll = call_roll(*world, call, [&] {
    Status mine = work();
    if (mine.ok() || mine.error().message.empty()) return mine;
    spdlog::error("{}", mine.error().message);
    return Status(Error{mine.error().code, {}, {}});
  });
  if (!roll.all_there) mpi->abandon();
  return roll.status;
}

Status Job::part() const {
  return world->barrier(Deadline::in(kPartDeadline));
}

transport::ControlOptions Job::control_options(transport::PeerInfo self_info) const {
  transport::ControlOptions options;
  self_info.role = self().role;
  self_info.world_rank = cluster_rank();
  self_info.replica = self().replica;
  self_info.replica_rank = self().replica_rank;
  self_info.replica_size = plan.tp;
  self_info.host = transport::host_identity();
  options.self = std::move(self_info);
  options.on_gpu = devices.cuda && self().role == Role::kWorker;
  if (options.on_gpu) {
    const auto& device = devices.survey.devices[devices.choice.index];
    auto staged = devices.survey.module->library->make_staged_memory(device.index, transport::kScratchBytes);
    if (staged.ok()) options.staged = std::move(staged).value();
    if (!staged.ok()) spdlog::warn("paths are measured from host memory alone: {}", staged.error().message);
  }
  options.cluster_secret = secret;
  options.listen_host = listen_host;
  if (self().role == Role::kCoordinator) options.listen_port = static_cast<uint16_t>(config.cluster_port);
  return options;
}

Status Job::take_place(int replica, int first_world_rank) {
  LOWKEY_ASSIGN(places, hear(fmt::format("{} {}", replica, first_world_rank), "taking the place"));
  std::istringstream place(places[0]);
  place >> replica >> first_rank;
  for (RankRole& rank : plan.ranks) rank.replica = replica;
  return {};
}

Status Job::meet(const std::string& address, boost::asio::io_context& io, transport::ControlPlane& control,
                 ClusterMember* member) const {
  LOWKEY_ASSIGN(addresses, hear(address, "telling the addresses"));
  const bool worker = self().role == Role::kWorker;
  std::map<int, std::string> stores;
  for (size_t other = 0; other < addresses.size(); ++other) {
    const RankRole& peer = plan.ranks[other];
    const bool to_follower =
        worker && self().replica_rank == 0 && peer.role == Role::kWorker && peer.replica == self().replica;
    if (worker && peer.role == Role::kStore) stores.emplace(other, addresses[other]);
    if (static_cast<int>(other) == rank() || !(self().role == Role::kCoordinator || to_follower)) continue;
    dial(static_cast<int>(other), addresses[other], io, control);
  }
  if (member) {
    boost::asio::post(io, [member, stores, joins = joins(), address = joins() ? config.join : addresses[0]] {
      member->set_stores(stores);
      member->set_coordinator(address, joins);
    });
  }
  return {};
}

void Job::dial(int rank, const std::string& address, boost::asio::io_context& io,
               transport::ControlPlane& control) const {
  const Duration patience =
      kConnectDeadline + std::chrono::seconds(devices.cuda ? config.step_deadline_seconds : 0);
  const char* role = transport::to_string(plan.ranks[rank].role);
  boost::asio::post(io, [&control, rank, role, address, patience] {
    control.connect(address, Deadline::in(patience), [rank, role](Result<transport::ConnectionPtr> result) {
      if (result.ok() || result.error().code == Code::kCancelled) return;
      // It was there a moment ago: what has begun without it would wait for it for good.
      spdlog::error("while connecting: rank {}, a {}: {}: this rank ends", rank, role,
                    result.error().message);
      exit_now(4);
    });
  });
}

int exit_code(const Status& status) {
  if (status.ok()) return 0;
  switch (status.error().code) {
    case Code::kUsage:
      return 2;
    case Code::kBadInput:
      return 3;
    default:
      return 4;
  }
}

}  // namespace lowkey::cli
