#include "cli/host_share.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/host_memory.h"
#include "cli/model_shape.h"
#include "cli/serve_options.h"
#include "worker/model/decoder_weights.h"

namespace lowkey::cli {
namespace {

using transport::Role;

constexpr uint64_t kDefaultKvBytes = 512 * kMiB;  // per host, of workers that compute on it

// What the workers of a host copy their weights to; 0 where that is not known before they are loaded.
uint64_t weights_of_host(const ServeConfig& config, const ClusterPlan& plan, int workers) {
  const auto model = served_config(config);
  if (!model.ok() || plan.tp < 1 || model->num_kv_heads % plan.tp != 0) return 0;  // loading tells
  return workers * worker::weight_bytes(*model, 0, plan.tp, dtype_of(config));
}

}  // namespace

HostShare HostShare::divide(const ServeConfig& config, const ClusterPlan& plan,
                            const std::vector<std::string>& hosts, int rank, int gpu_sharers) {
  HostShare share;
  share.on_gpus = gpu_sharers > 0;
  share.ranks = share.workers = share.stores = 0;
  for (size_t other = 0; other < hosts.size(); ++other) {
    if (hosts[other] != hosts[rank]) continue;
    if (static_cast<int>(other) == rank) share.worker_index = share.workers;
    ++share.ranks;
    share.workers += plan.ranks[other].role == Role::kWorker;
    share.stores += plan.ranks[other].role == Role::kStore;
  }
  const int cores = usable_cores();
  share.threads = config.threads > 0 ? config.threads : std::max(1, cores / std::max(1, share.workers));
  const uint64_t kv_bytes = config.kv_bytes > 0 || share.on_gpus ? config.kv_bytes : kDefaultKvBytes;
  const int kv_sharers = share.on_gpus ? gpu_sharers : share.workers;
  share.kv_bytes = share.workers > 0 ? kv_bytes / std::max(1, kv_sharers) : 0;
  share.host_bytes = share.stores > 0 ? config.host_bytes / share.stores : 0;
  return share;
}

Status check_host(const ServeConfig& config, const ClusterPlan& plan, const HostShare& share) {
  const bool on_host = share.workers > 0 && !share.on_gpus;
  const uint64_t kv = on_host ? share.kv_bytes * share.workers : 0;
  const uint64_t host = share.host_bytes * share.stores;
  const uint64_t weights = on_host ? weights_of_host(config, plan, share.workers) : 0;
  const uint64_t available = host_memory_available_bytes();
  if (kv <= available && host <= available - kv && weights <= available - kv - host) return {};
  return Error{
      Code::kUsage,
      fmt::format("--kv-bytes {}, --host-bytes {} and {} of weights together do not fit the memory that "
                  "this host (or its cgroup) has left, {} of {}",
                  format_bytes(kv), format_bytes(host), format_bytes(weights), format_bytes(available),
                  format_bytes(host_memory_limit_bytes())),
      "kv-bytes"};
}

}  // namespace lowkey::cli
