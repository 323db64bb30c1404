// A whole replica in one process: the leader's engine on the calling thread, followers on threads of their
// own, plans and commands through queues in the leader's order, collectives through loopback; and a store in
// memory.
#pragma once

#include <atomic>
#include <deque>
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
  void put(std::vector<kvstore::PageWrite> pages);
  // A page that lacks a wanted slab, or whose header does not speak of these bytes, is a miss.
  // Into the memory of a device where there is one.
  kvstore::RestoreReport get(const std::vector<kvstore::PageRead>& pages, bool gaps,
                             kernels::PageCopies* device = nullptr) const;

  size_t pages() const;
  void forget_all();
  void damage_all(int slab = 0);                  // flips a bit in every page
  void forget_levels(int levels);                 // keeps that many levels of every page
  void set_lossy(bool lossy) { lossy_ = lossy; }  // what is restored counts as rounded
  // What restores are said to take; 0: no time at all.
  void set_bytes_per_second(double rate) { bytes_per_second_ = rate; }
  void forget_rank(int rank) {
    forget_if([rank](const auto& header) { return header.rank == rank; });
  }
  void forget_if(const std::function<bool(const kernels::PageHeader&)>& lost);

 private:
  struct Page {
    kernels::PageHeader header;
    std::array<std::vector<std::byte>, kernels::kMaxSlabs> slabs;
  };
  mutable std::mutex mutex_;
  std::string read(const kvstore::PageRead& wanted, kernels::PageCopies* device, uint64_t* bytes) const;

  std::map<Hash128, Page> pages_;
  std::atomic<bool> lossy_ = false;
  std::atomic<double> bytes_per_second_ = 0;
};

struct EngineReplicaOptions {
  int ranks = 1;
  uint64_t kv_bytes = 1 << 20;
  kernels::PageSpec spec;
  kernels::DType dtype = kernels::DType::kF32;
  // Nobody who is not scheduled for seconds shall be given up.
  EngineOptions engine{.restore_wait = std::chrono::seconds(40), .grammar_wait = std::chrono::seconds(80)};
  std::shared_ptr<MemoryStore> store;
  std::function<std::unique_ptr<Model>(int rank, int ranks)> model;
  // Where pages are archived: what the archive is for ranks of this shape.
  std::function<kvstore::ArchiveSpec(const kernels::CacheShape&)> archive;
  // Of each rank's model, where it has one; pages lie in its memory.
  std::function<kernels::Backend*(int rank)> backend;
  Hash128 model_fingerprint{1, 2};
  // Sees every restore of every rank before it is served; true: `serve` will be called later (or never).
  // `upper`: of levels behind the first.
  std::function<bool(int rank, bool upper, std::function<void()> serve)> hold_restore;
  // Sees every page that a rank spills; true: that fails.
  std::function<bool(int rank, const kvstore::PageWrite& page)> fail_spill;
  std::function<uint64_t()> stores;  // EnginePorts::stores
};

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<wire::TokenEvent> events;
  wire::FinishReason finish = wire::FINISH_NONE;
  std::string error;
  uint32_t error_code = 0;
  uint32_t cached = 0, cached_store = 0;
  const wire::KvReport& report() const { return events.back().kv(); }
};

class EngineReplica {
 public:
  explicit EngineReplica(EngineReplicaOptions options);
  ~EngineReplica();

  // Greedy unless `sampling` says otherwise. Returns the request id.
  uint64_t submit(std::vector<int32_t> prompt, int max_tokens, wire::SamplingParams sampling = greedy());
  Status try_submit(uint64_t request_id, std::vector<int32_t> prompt, int max_tokens,
                    wire::SamplingParams sampling = greedy(), const std::string& salt = "");
  Status try_submit(wire::Submit request);
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
  const std::vector<wire::PrefixEvents>& prefix_events() const { return prefix_events_; }

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
  kernels::Backend* backend(int rank) const { return options_.backend ? options_.backend(rank) : nullptr; }
  ExecutorOptions executor_options(int rank) const;
  void follow(int rank);
  void on_events(const wire::TokenEvents& events);
  void put_late(size_t leave);

  EngineReplicaOptions options_;
  std::vector<Rank> ranks_;
  std::unique_ptr<Engine> engine_;
  std::map<uint64_t, Answer> answers_;
  uint64_t next_request_ = 1;
  size_t open_ = 0;
  int largest_step_ = 0;
  std::vector<wire::PrefixEvents> prefix_events_;
  // Copies of device pages are read as late as they may be: when the step after them has been made.
  std::mutex late_mutex_;
  std::deque<std::vector<kvstore::PageWrite>> late_spills_;
};

}  // namespace lowkey::worker
