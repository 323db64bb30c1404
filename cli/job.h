// The MPI job one process belongs to, as all ranks agreed on it at start: settings, roles, secret, budgets.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/serve_config.h"
#include "cli/cluster_plan.h"
#include "cli/host_share.h"
#include "transport/control_plane.h"
#include "transport/host_comm.h"
#include "worker/device/device.h"

namespace lowkey::transport {
class MpiRuntime;
}

namespace lowkey::cli {

class ClusterMember;

// The devices of this job's workers, the same kind for all of them.
struct JobDevices {
  bool cuda = false;
  worker::DeviceSurvey survey;  // of this process
  worker::DeviceChoice choice;  // of this process, if a worker
  uint64_t free_bytes = 0;      // on GPUs: the least that any worker's device has, divided by its workers
};

struct Job {
  transport::MpiRuntime* mpi = nullptr;
  std::shared_ptr<transport::HostComm> world;
  std::shared_ptr<transport::HostComm>
      peers;  // of this worker's replica, its leader first; null in other roles
  ServeConfig config;
  ClusterPlan plan;
  HostShare share;
  JobDevices devices;
  std::string secret;
  std::string listen_host;  // of the control port
  bool open = false;        // the coordinator can be found again: others may join, and it may be replaced
  int first_rank = 0;       // of this job in the cluster
  TimePoint started = Clock::now();

  int rank() const { return world->rank(); }                // in this job
  int cluster_rank() const { return first_rank + rank(); }  // unique in the cluster
  bool joins() const { return !config.join.empty(); }       // a cluster that runs already
  // How long a worker or store of this job dials a lost coordinator; 0: it would not be found.
  Duration reconnect() const { return std::chrono::seconds(open ? config.reconnect_seconds : 0); }
  bool is_alone() const { return !joins() && world->size() == 1; }  // a coordinator whose workers come later
  const RankRole& self() const { return plan.ranks[world->rank()]; }
  std::vector<int> ranks_of(transport::Role role) const;

  // All ranks settle on roles, budgets and the secret, and rank 0 prints them.
  static Result<Job> form(transport::MpiRuntime& mpi, const ServeConfig& config,
                          std::optional<transport::Role> named);

  // Collective: does `work`, for as long as it takes, and success only when every rank succeeded. A rank that
  // failed prints its own error, before the others hear of it; all get an empty one, and those that are still
  // at work end at once. Nobody goes on alone into a collective that would never complete, nor waits for a
  // rank that is gone: `phase` ("loading the model") and its number are in the error then.
  Status together(const char* phase, const std::function<Status()>& work) const;
  // Collective, at an orderly end, before the connections go: nobody may take a peer that was quicker to
  // leave for a lost one. An error means that a rank is gone or late: MPI_Finalize would wait for it.
  Status part() const;
  transport::ControlOptions control_options(transport::PeerInfo self) const;
  // Collective: the place in the cluster that the first rank was given for the replica of this job.
  Status take_place(int replica, int first_world_rank);
  // Collective: exchanges control addresses and connects this rank to the peers it owes a connection: the
  // coordinator to everybody, a leader to its followers, a worker to every store; a rank that joins also to
  // the coordinator. `member` (not of the coordinator) learns where the others are. Connections come up once
  // `io` runs; one that does not in time ends this process.
  Status meet(const std::string& address, boost::asio::io_context& io, transport::ControlPlane& control,
              ClusterMember* member) const;

 private:
  // What every rank says in `phase`, which takes none of them any time.
  Result<std::vector<std::string>> hear(const std::string& mine, const char* phase) const;
  Status take_roles(std::optional<transport::Role> named);
  Status share_secret();
  Status choose_devices(const std::vector<std::string>& hosts);
  Status find_free_bytes();
  void dial(int rank, const std::string& address, boost::asio::io_context& io,
            transport::ControlPlane& control) const;
};

// 0 done, 2 usage, 3 bad input file, 4 runtime failure.
int exit_code(const Status& status);

}  // namespace lowkey::cli
