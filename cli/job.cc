#include "cli/job.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <map>
#include <sstream>

#include "base/host_memory.h"
#include "base/log.h"
#include "cli/cluster_member.h"
#include "cli/serve_options.h"
#include "transport/core/path_probe.h"
#include "transport/host_identity.h"
#include "transport/mpi/mpi_runtime.h"

namespace lowkey::cli {
namespace {

using transport::Role;

// Model loading differs between ranks by minutes at most.
constexpr auto kStartDeadline = std::chrono::minutes(30);
constexpr auto kConnectDeadline = std::chrono::seconds(30);
constexpr auto kPartDeadline = std::chrono::seconds(5);
constexpr uint64_t kDefaultKvBytes = 512 * kMiB;  // per host, of workers that compute on it

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

// The address other hosts can reach this one at: the first that is up and not loopback.
std::string first_external_address() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return "127.0.0.1";
  std::string found = "127.0.0.1";
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET) continue;
    if ((entry->ifa_flags & IFF_UP) == 0 || (entry->ifa_flags & IFF_LOOPBACK) != 0) continue;
    char host[NI_MAXHOST];
    if (getnameinfo(entry->ifa_addr, sizeof(sockaddr_in), host, sizeof(host), nullptr, 0, NI_NUMERICHOST) !=
        0)
      continue;
    found = host;
    break;
  }
  freeifaddrs(list);
  return found;
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address.starts_with("localhost:") || address.starts_with("[::1]");
}

Result<HostShare> share_of_host(const ServeConfig& config, const ClusterPlan& plan,
                                const std::vector<std::string>& hosts, int rank, const JobDevices& devices) {
  const bool cuda = devices.cuda;
  const int sharers = devices.choice.sharers;
  HostShare share;
  share.ranks = share.workers = share.stores = 0;
  for (size_t other = 0; other < hosts.size(); ++other) {
    if (hosts[other] != hosts[rank]) continue;
    ++share.ranks;
    share.workers += plan.ranks[other].role == Role::kWorker;
    share.stores += plan.ranks[other].role == Role::kStore;
  }
  const int cores = usable_cores();
  share.threads = config.threads > 0 ? config.threads : std::max(1, cores / std::max(1, share.workers));
  const uint64_t kv_bytes = config.kv_bytes > 0 || cuda ? config.kv_bytes : kDefaultKvBytes;
  const int kv_sharers = cuda ? sharers : share.workers;
  share.kv_bytes = share.workers > 0 ? kv_bytes / std::max(1, kv_sharers) : 0;
  share.host_bytes = share.stores > 0 ? config.host_bytes / share.stores : 0;
  const uint64_t asked =
      (share.workers > 0 && !cuda ? kv_bytes : 0) + (share.stores > 0 ? config.host_bytes : 0);
  if (asked > host_memory_limit_bytes()) {
    return Error{Code::kUsage,
                 fmt::format("--kv-bytes {} and --host-bytes {} together exceed this host's memory (or "
                             "its cgroup's limit), {}",
                             format_bytes(cuda ? 0 : kv_bytes), format_bytes(config.host_bytes),
                             format_bytes(host_memory_limit_bytes())),
                 "kv-bytes"};
  }
  return share;
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

std::vector<int> Job::ranks_of_replica(int replica) const {
  std::vector<int> ranks = ranks_of(Role::kWorker);
  std::erase_if(ranks, [&](int rank) { return plan.ranks[rank].replica != replica; });
  std::sort(ranks.begin(), ranks.end(),
            [&](int a, int b) { return plan.ranks[a].replica_rank < plan.ranks[b].replica_rank; });
  return ranks;
}

Result<Job> Job::form(transport::MpiRuntime& mpi, const ServeConfig& config, std::optional<Role> named) {
  Job job;
  job.mpi = &mpi;
  LOWKEY_ASSIGN(world, mpi.split(0, mpi.rank()));
  job.world = std::move(world);
  job.config = config;
  const Deadline deadline = Deadline::in(kStartDeadline);
  LOWKEY_ASSIGN(roles, job.world->all_gather(named ? transport::to_string(*named) : "", deadline));
  std::vector<std::optional<Role>> named_roles;
  for (const std::string& role : roles) {
    named_roles.emplace_back();
    for (const Role known : {Role::kCoordinator, Role::kWorker, Role::kStore}) {
      if (role == transport::to_string(known)) named_roles.back() = known;
    }
  }
  auto plan = ClusterPlan::make(config, named_roles);
  if (!plan.ok()) return told_once(plan.error(), job.rank() == 0);
  job.plan = *std::move(plan);
  LOWKEY_ASSIGN(hosts, job.world->all_gather(transport::host_identity(), deadline));
  LOWKEY_TRY(job.choose_devices(hosts, deadline));
  const Result<HostShare> share = share_of_host(config, job.plan, hosts, job.rank(), job.devices);
  const bool first_of_host =
      std::find(hosts.begin(), hosts.end(), hosts[job.rank()]) - hosts.begin() == job.rank();
  LOWKEY_TRY(job.agree(share.ok() ? Status() : Status(told_once(share.error(), first_of_host)),
                       "dividing its host's budgets"));
  job.share = *share;
  const bool one_host =
      std::all_of(hosts.begin(), hosts.end(), [&](const auto& host) { return host == hosts[0]; });
  const bool near = job.joins() ? is_loopback(config.join) : one_host;
  job.listen_host = !config.cluster_listen.empty() ? config.cluster_listen
                    : near                         ? "127.0.0.1"
                                                   : first_external_address();
  LOWKEY_TRY(job.share_secret(deadline));
  if (job.rank() == 0) print_plan(job);
  return job;
}

// Every worker looks for devices, all ranks hear what was found, and come to the same answer.
Status Job::choose_devices(const std::vector<std::string>& hosts, Deadline deadline) {
  if (config.device == "cpu") return {};
  const bool worker = self().role == Role::kWorker;
  if (worker) devices.survey = worker::DeviceSurvey::make();
  const auto& mine = devices.survey.devices;
  LOWKEY_ASSIGN(counts, world->all_gather(worker ? std::to_string(mine.size()) : "", deadline));
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
  LOWKEY_ASSIGN(uuids, world->all_gather(worker ? mine[devices.choice.index].uuid : "", deadline));
  devices.choice.sharers = static_cast<int>(std::ranges::count(uuids, uuids[rank()]));
  uint64_t free = 0;
  Status found;
  if (worker) {
    const auto bytes = devices.survey.module->library->free_bytes(mine[devices.choice.index].index);
    if (bytes.ok()) free = *bytes / devices.choice.sharers;
    if (!bytes.ok()) found = bytes.error();
  }
  LOWKEY_TRY(agree(found, "opening the devices"));
  LOWKEY_ASSIGN(shares, world->all_gather(worker ? std::to_string(free) : "", deadline));
  devices.free_bytes = UINT64_MAX;
  for (const int other : workers)
    devices.free_bytes = std::min<uint64_t>(devices.free_bytes, std::stoull(shares[other]));
  return {};
}

Status Job::share_secret(Deadline deadline) {
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
  LOWKEY_ASSIGN(secrets, world->all_gather(mine, deadline));
  open = secrets[0][0] == '1';
  secret = secrets[0].substr(1);
  if (secret.size() < 16) {
    const std::string found = fmt::format("expected at least 16 characters, found {}", secret.size());
    return told_once({Code::kUsage, "--cluster-secret: " + found, "cluster-secret"}, rank() == 0);
  }
  return {};
}

Status Job::agree(const Status& mine, const char* phase) const {
  const std::string code = mine.ok() ? "" : std::to_string(static_cast<int>(mine.error().code));
  LOWKEY_ASSIGN(codes, world->all_gather(code, Deadline::in(kStartDeadline)));
  for (size_t rank = 0; rank < codes.size(); ++rank) {
    if (codes[rank].empty()) continue;
    if (!mine.ok()) return mine;
    spdlog::debug("rank {} failed while {}", rank, phase);
    return Error{static_cast<Code>(std::stoi(codes[rank])), {}, {}};  // that rank tells why
  }
  return {};
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
  LOWKEY_ASSIGN(places, world->all_gather(fmt::format("{} {}", replica, first_world_rank),
                                          Deadline::in(kStartDeadline)));
  std::istringstream place(places[0]);
  place >> replica >> first_rank;
  for (RankRole& rank : plan.ranks) rank.replica = replica;
  return {};
}

Result<std::shared_ptr<transport::HostComm>> Job::meet(const std::string& address,
                                                       boost::asio::io_context& io,
                                                       transport::ControlPlane& control,
                                                       ClusterMember* member) const {
  LOWKEY_ASSIGN(addresses, world->all_gather(address, Deadline::in(kStartDeadline)));
  const bool worker = self().role == Role::kWorker;
  std::map<int, std::string> stores;
  for (size_t other = 0; other < addresses.size(); ++other) {
    const RankRole& peer = plan.ranks[other];
    const bool to_follower =
        worker && self().replica_rank == 0 && peer.role == Role::kWorker && peer.replica == self().replica;
    if (worker && peer.role == Role::kStore) stores.emplace(other, addresses[other]);
    if (static_cast<int>(other) == rank() || !(self().role == Role::kCoordinator || to_follower)) continue;
    boost::asio::post(io, [&control, other, address = addresses[other]] {
      control.connect(address, Deadline::in(kConnectDeadline),
                      [other](Result<transport::ConnectionPtr> result) {
                        if (!result.ok())
                          spdlog::error("cannot connect to rank {}: {}", other, result.error().message);
                      });
    });
  }
  if (member) {
    boost::asio::post(io, [member, stores, joins = joins(), address = joins() ? config.join : addresses[0]] {
      member->set_stores(stores);
      member->set_coordinator(address, joins);
    });
  }
  LOWKEY_ASSIGN(comm, mpi->split(worker ? self().replica : -1, self().replica_rank));
  return std::shared_ptr<transport::HostComm>(std::move(comm));
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
