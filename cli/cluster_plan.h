// Which rank of the MPI job plays which role: 1 coordinator, then replicas of T workers each, then stores.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/serve_config.h"
#include "transport/peer.h"

namespace lowkey::cli {

struct RankRole {
  transport::Role role = transport::Role::kCoordinator;
  int replica = 0;       // workers
  int replica_rank = 0;  // workers; 0 is the leader
};

struct ClusterPlan {
  int tp = 1;
  int replicas = 1;
  int stores = 1;
  std::vector<RankRole> ranks;

  // `named`: the role each rank was started under (`lowkey worker ...`), or empty for `serve`. Either all
  // ranks are named or none. Errors: kUsage, naming the sum that does not hold.
  static Result<ClusterPlan> make(const ServeConfig& config,
                                  std::span<const std::optional<transport::Role>> named);
};

}  // namespace lowkey::cli
