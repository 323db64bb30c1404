#include "cli/cluster_plan.h"

#include <algorithm>

namespace lowkey::cli {
namespace {

using transport::Role;

Status check_sum(const ClusterPlan& plan, int size) {
  const int sum = 1 + plan.tp * plan.replicas + plan.stores;
  if (sum == size) return {};
  return Error{
      Code::kUsage,
      fmt::format(
          "the job has {} ranks, but 1 coordinator + {} replica(s) x {} tensor-parallel worker(s) + {} "
          "store(s) = {}; start it with mpirun -n {}",
          size, plan.replicas, plan.tp, plan.stores, sum, sum),
      {}};
}

std::vector<RankRole> by_rank(const ClusterPlan& plan) {
  std::vector<RankRole> ranks{{Role::kCoordinator}};
  for (int replica = 0; replica < plan.replicas; ++replica) {
    for (int rank = 0; rank < plan.tp; ++rank) ranks.push_back({Role::kWorker, replica, rank});
  }
  ranks.insert(ranks.end(), plan.stores, RankRole{Role::kStore});
  return ranks;
}

// One further replica, over all ranks; or one further store.
Result<ClusterPlan> joining(const ServeConfig& config, std::span<const std::optional<Role>> named) {
  const int size = static_cast<int>(named.size());
  if (size == 1 && named[0] == Role::kStore)
    return ClusterPlan{.tp = 1, .replicas = 0, .stores = 1, .ranks = {RankRole{Role::kStore}}};
  if (std::count(named.begin(), named.end(), Role::kWorker) != size) {
    return Error{Code::kUsage,
                 "--join is for `lowkey worker`, in a job of workers alone, or for one `lowkey store`",
                 "join"};
  }
  if ((config.tp != 0 && config.tp != size) || config.replicas > 1) {
    return Error{Code::kUsage,
                 fmt::format("all {} rank(s) of a job that joins are one replica: leave --tp and --replicas "
                             "out",
                             size),
                 "join"};
  }
  ClusterPlan plan{.tp = size, .replicas = 1, .stores = 0};
  for (int rank = 0; rank < size; ++rank) plan.ranks.push_back({Role::kWorker, 0, rank});
  return plan;
}

// A coordinator that others come to.
Result<ClusterPlan> alone(const ServeConfig& config) {
  if (config.cluster_port == 0) {
    return Error{Code::kUsage,
                 "a coordinator alone needs the --cluster-port that workers and stores come to; a whole "
                 "cluster is started with mpirun",
                 "cluster-port"};
  }
  return ClusterPlan{.tp = 1, .replicas = 0, .stores = 0, .ranks = {RankRole{Role::kCoordinator}}};
}

}  // namespace

Result<ClusterPlan> ClusterPlan::make(const ServeConfig& config, std::span<const std::optional<Role>> named) {
  const int size = static_cast<int>(named.size());
  const bool any_named =
      std::any_of(named.begin(), named.end(), [](const auto& role) { return role.has_value(); });
  ClusterPlan plan;
  if (!config.join.empty()) return joining(config, named);
  if (size == 1 && named[0] == Role::kCoordinator) return alone(config);
  plan.replicas = config.replicas == 0 ? 1 : config.replicas;
  if (!any_named) {
    plan.stores = config.stores < 0 ? 1 : config.stores;
    plan.tp = config.tp == 0 ? (size - 1 - plan.stores) / plan.replicas : config.tp;
    if (plan.tp < 1) {
      return Error{Code::kUsage,
                   fmt::format("the job has {} rank(s); the least is 3: 1 coordinator + 1 worker + 1 "
                               "store (or 2 with --stores 0); start it with mpirun -n 3",
                               size),
                   {}};
    }
    LOWKEY_TRY(check_sum(plan, size));
    if (plan.stores == 0 && !config.disk.empty()) {
      return Error{Code::kUsage,
                   fmt::format("--disk {}: expected at least one store, found --stores 0", config.disk),
                   "disk"};
    }
    plan.ranks = by_rank(plan);
    return plan;
  }
  const auto count = [&](Role role) {
    return static_cast<int>(std::count(named.begin(), named.end(), role));
  };
  if (std::count(named.begin(), named.end(), std::nullopt) > 0 || named[0] != Role::kCoordinator ||
      count(Role::kCoordinator) != 1) {
    return Error{Code::kUsage,
                 "named roles need exactly one `lowkey coordinator`, as the first rank, and a role for "
                 "every other rank",
                 {}};
  }
  plan.stores = count(Role::kStore);
  plan.tp = config.tp == 0 ? count(Role::kWorker) / plan.replicas : config.tp;
  LOWKEY_TRY(check_sum(plan, size));
  int worker = 0;
  for (const auto& role : named) {
    plan.ranks.push_back({*role});
    if (*role != Role::kWorker) continue;
    plan.ranks.back().replica = worker / plan.tp;
    plan.ranks.back().replica_rank = worker % plan.tp;
    ++worker;
  }
  return plan;
}

}  // namespace lowkey::cli
