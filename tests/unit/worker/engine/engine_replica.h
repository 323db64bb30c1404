// A whole replica in one process: the leader's engine on the calling thread, followers on threads of their
// own, plans and commands through queues in the leader's order, collectives through loopback; and a store in
// memory.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "base/bounded_queue.h"
#include "transport/host_comm.h"
#include "transport/wire/lowkey.pb.h"
#include "worker/engine/engine.h"
#include "worker/engine/follower.h"

namespace lowkey::worker {

// Pages of all ranks by identity: what stands behind the ports instead of the store's client.
class MemoryStore {
 public:
  void put(std::vector<StagedPage> pages);
  // Stops at the first miss; a page whose header does not speak of these bytes is a miss.
  std::pair<size_t, std::string> get(const std::vector<RestoreTarget>& targets) const;

  size_t pages() const;
  void forget_all();
  void damage_all();  // flips a bit in every page
  void forget_rank(int rank);

 private:
  struct Page {
    kernels::PageHeader header;
    std::array<std::vector<std::byte>, kernels::kMaxSlabs> slabs;
  };
  mutable std::mutex mutex_;
  std::map<Hash128, Page> pages_;
};

struct EngineReplicaOptions {
  int ranks = 1;
  uint64_t kv_bytes = 1 << 20;
  kernels::PageSpec spec;
  kernels::DType dtype = kernels::DType::kF32;
  EngineOptions engine;
  std::shared_ptr<MemoryStore> store;
  std::function<std::unique_ptr<Model>(int rank, int ranks)> model;
  // Where pages are archived: what the archive is for ranks of this shape, and the backend of each rank's
  // model.
  std::function<kvstore::ArchiveSpec(const kernels::CacheShape&)> archive;
  std::function<kernels::Backend*(int rank)> backend;
  Hash128 model_fingerprint{1, 2};
  // Sees every restore of every rank before it is served; true: `serve` will be called later (or never).
  std::function<bool(int rank, std::function<void()> serve)> hold_restore;
};

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<wire::TokenEvent> events;
  wire::FinishReason finish = wire::FINISH_NONE;
  std::string error;
  uint32_t error_code = 0;
  uint32_t cached = 0, cached_store = 0;
};

class EngineReplica {
 public:
  explicit EngineReplica(EngineReplicaOptions options);
  ~EngineReplica();

  // Greedy unless `sampling` says otherwise. Returns the request id.
  uint64_t submit(std::vector<int32_t> prompt, int max_tokens, wire::SamplingParams sampling = greedy());
  Status try_submit(uint64_t request_id, std::vector<int32_t> prompt, int max_tokens,
                    wire::SamplingParams sampling = greedy(), const std::string& salt = "");
  static wire::SamplingParams greedy();

  // Steps until every submitted request has ended and all memory is back; fails the test after 100 s.
  void run();
  void run_until(uint64_t request_id);  // has ended; fails the test after 100 s
  bool step();                          // one step, checking the ledger
  const Answer& answer(uint64_t request_id) { return answers_[request_id]; }
  std::vector<int32_t> complete(std::vector<int32_t> prompt, int max_tokens) {
    const uint64_t id = submit(std::move(prompt), max_tokens);
    run();
    return answer(id).tokens;
  }

  Engine& engine() { return *engine_; }
  Model& model(int rank) { return *ranks_[rank].model; }
  // Sum of all series of this rank's page that begin with `name` and contain `label`.
  double metric(int rank, const std::string& name, const std::string& label = "") const;
  const kernels::PageLayout& layout() const { return ranks_[0].memory->layout(); }
  kvstore::PageMemory& memory() { return *ranks_[0].memory; }
  int largest_step() const { return largest_step_; }
  size_t open_requests() const { return open_; }
  void check_all_returned();

 private:
  using Message = std::variant<wire::StepPlan, wire::RestoreCommand>;
  struct Rank {
    std::unique_ptr<Model> model;
    std::unique_ptr<kvstore::PageMemory> memory;
    std::unique_ptr<transport::HostComm> comm;
    std::unique_ptr<monitoring::Metrics> metrics;
    std::unique_ptr<Follower> follower;
    std::unique_ptr<BoundedQueue<Message>> queue;
    std::thread thread;
  };
  EnginePorts ports(int rank);
  ExecutorOptions executor_options(int rank) const;
  void follow(int rank);
  void on_events(const wire::TokenEvents& events);

  EngineReplicaOptions options_;
  std::vector<Rank> ranks_;
  std::unique_ptr<Engine> engine_;
  std::map<uint64_t, Answer> answers_;
  uint64_t next_request_ = 1;
  size_t open_ = 0;
  int largest_step_ = 0;
};

}  // namespace lowkey::worker
