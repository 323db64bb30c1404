// How the processes of one host divide its cores and memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/serve_config.h"
#include "cli/cluster_plan.h"

namespace lowkey::cli {

// What this process may use of its host.
struct HostShare {
  int ranks = 1;  // of this job on this host
  int workers = 1;
  int worker_index = 0;  // of this rank among them, if a worker
  int stores = 1;
  bool on_gpus = false;     // workers compute and keep their cache there
  int threads = 1;          // compute threads of a worker
  uint64_t kv_bytes = 0;    // of this rank, if a worker; 0: on GPUs, what the weights leave
  uint64_t host_bytes = 0;  // of this rank, if a store

  // `hosts`: of every rank (transport::host_identity()). `gpu_sharers`: workers on this rank's GPU, itself
  // among them; 0 where workers compute on the host.
  static HostShare divide(const ServeConfig& config, const ClusterPlan& plan,
                          const std::vector<std::string>& hosts, int rank, int gpu_sharers);
};

// By one rank of each host for all of them, before any of them takes memory: what each can see is what the
// others have not taken yet. Errors: caches, weights and stores together do not fit what is left.
Status check_host(const ServeConfig& config, const ClusterPlan& plan, const HostShare& share);

}  // namespace lowkey::cli
