// The MPI job one process belongs to, as all ranks agreed on it at start: settings, roles, secret, budgets.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/serve_config.h"
#include "cli/cluster_plan.h"
#include "transport/control_plane.h"
#include "transport/host_comm.h"

namespace lowkey::transport {
class MpiRuntime;
}

namespace lowkey::cli {

// What this process may use of its host.
struct HostShare {
  int ranks = 1;  // of this job on this host
  int workers = 1;
  int stores = 1;
  int threads = 1;          // compute threads of a worker
  uint64_t kv_bytes = 0;    // of this rank, if a worker
  uint64_t host_bytes = 0;  // of this rank, if a store
};

struct Job {
  transport::MpiRuntime* mpi = nullptr;
  std::shared_ptr<transport::HostComm> world;
  ServeConfig config;
  ClusterPlan plan;
  HostShare share;
  std::string secret;
  std::string listen_host;  // of the control port
  TimePoint started = Clock::now();

  int rank() const { return world->rank(); }
  const RankRole& self() const { return plan.ranks[world->rank()]; }
  std::vector<int> ranks_of(transport::Role role) const;
  std::vector<int> ranks_of_replica(int replica) const;  // leader first

  // All ranks settle on roles, budgets and the secret, and rank 0 prints them.
  static Result<Job> form(transport::MpiRuntime& mpi, const ServeConfig& config,
                          std::optional<transport::Role> named);

  // Collective: success only when every rank succeeded. A rank that failed prints its own error; the others
  // get a short one. Nobody goes on alone into a collective that would never complete.
  Status agree(const Status& mine, const char* phase) const;
  // Collective, at an orderly end, before the connections go: nobody may take a peer that was quicker to
  // leave for a lost one. An error means that a rank is gone or late: MPI_Finalize would wait for it.
  Status part() const;
  transport::ControlOptions control_options(transport::PeerInfo self) const;
  // Collective: exchanges control addresses and connects this rank to the peers it owes a connection: the
  // coordinator to everybody, a leader to its followers, a worker to every store. Connections come up once
  // `io` runs. Returns the communicator of this worker's replica; null in other roles.
  Result<std::shared_ptr<transport::HostComm>> meet(const std::string& address, boost::asio::io_context& io,
                                                    transport::ControlPlane& control) const;
};

// 0 done, 2 usage, 3 bad input file, 4 runtime failure.
int exit_code(const Status& status);

}  // namespace lowkey::cli
