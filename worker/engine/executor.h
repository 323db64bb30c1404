// Executes step plans on one rank: leader and followers run the same code on the same plans. It knows where
// every sequence's pages lie, and nothing of requests, references or identities of others.
//
// Order inside a step: forget released sequences, copy pages to be spilled, run the model, move tokens to
// archived pages, gather the logits. The copies come first so that, once the leader has the model's last
// all-reduce, no rank still reads a page that the next plan may give away. A failed step changes nothing that
// counts: pages become real when the leader commits.
//
// Thread rule: the step thread. Plans and restores must arrive in the order in which the leader sent them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/deadline.h"
#include "kernels/cpu/row_draw.h"
#include "kvstore/page/page_memory.h"
#include "monitoring/metrics.h"
#include "worker/engine/engine_ports.h"
#include "worker/engine/page_traffic.h"
#include "worker/engine/timed_comm.h"
#include "worker/model/model.h"

namespace lowkey::wire {
class Compaction;
class DeviceTier;
class PlannedSequence;
class StepPlan;
}  // namespace lowkey::wire

namespace lowkey::worker {

struct ExecutorOptions {
  Hash128 model_fingerprint;
  Hash128 layout_fingerprint;
  uint64_t staging_bytes = 64ull << 20;  // bound of page copies on their way to a store
  Duration step_deadline = std::chrono::seconds(30);
  kernels::Backend* backend = nullptr;           // the model's; null: one that has none, in host memory
  transport::DeviceComm* collectives = nullptr;  // of the model's tensors; null: through the host
};

class Executor {
 public:
  // Everything named outlives the executor. `ports.restore` and `ports.spill` may be empty: no store.
  Executor(const ExecutorOptions& options, Model& model, kvstore::PageMemory& memory,
           transport::HostComm& comm, const EnginePorts& ports, monitoring::Metrics& metrics);

  // Leader: tokens of `draws` are drawn where the logits are, if can_draw(); `row` as i of logits(),
  // ascending. Errors: of a collective or of a plan that does not fit this rank's tables; the step is lost.
  Status execute(const wire::StepPlan& plan, std::span<const kernels::TokenDraw> draws = {});
  bool can_draw() const;

  // Leader: what was drawn for the i-th logits; null: they are in logits(i).
  const kernels::DrawnToken* drawn(size_t i) const;
  // Leader: the i-th logits [vocab_size] of the last plan, in the order of its sequences and their tokens.
  // Rules may change them.
  std::span<float> logits(size_t i);
  std::span<float> logits() { return logits_; }
  // Leader: tokens of `rows`, [.., vocab_size] on the host, over the backend's threads. Until the next call.
  std::span<const kernels::DrawnToken> draw(std::span<const float> rows,
                                            std::span<const kernels::TokenDraw> draws);

  PageTraffic& pages() { return pages_; }  // that leave with plans, and come back beside them
  size_t known_sequences() const { return tables_.size(); }

 private:
  struct Table {
    std::vector<std::byte*> slabs;     // [page * kMaxSlabs + slab]; null: not there
    std::vector<uint8_t> page_levels;  // [page] to be read: the leading ones that are there
    size_t pages() const { return page_levels.size(); }
    // Where the recipe has an archive: [bank], and the addresses behind them.
    std::vector<kernels::ArchivedPages> archives;
    std::vector<std::vector<std::byte*>> archive_slabs;
    kernels::TokenObserver observer;
    float* scores = nullptr;  // what the observer writes, in the backend's memory
    uint64_t run = 0;         // the last one that it was planned in
  };

  Status apply(const wire::PlannedSequence& planned, Table* table);
  Status check(const wire::PlannedSequence& planned) const;
  Status enter(std::span<const uint32_t> slabs, size_t page, Table* table) const;
  Status observe(const wire::PlannedSequence& planned, Table* table) const;
  void clear(std::byte* room, uint64_t bytes) const;
  const float* signal_of(const Table& table, int bank, size_t floats);
  Status compact(const wire::PlannedSequence& planned, Table* table);
  Status add_archived(const wire::Compaction& compaction, Table* table) const;
  Status run_model(const wire::StepPlan& plan, std::span<const kernels::TokenDraw> draws);
  void count_step();
  void take_logits(size_t rows);
  void report(const wire::DeviceTier& device);

  ExecutorOptions options_;
  Model& model_;
  kvstore::PageMemory& memory_;
  TimedComm comm_;
  const std::unique_ptr<transport::DeviceComm> staged_;
  transport::DeviceComm& collectives_;
  monitoring::Metrics& metrics_;
  PageTraffic pages_;
  std::unordered_map<uint64_t, Table> tables_;  // by sequence id
  kernels::StepGraphs::Counts graphs_;          // after the last step
  uint64_t runs_ = 0;                           // of the model
  std::vector<float> signal_;                   // of one bank, from a device
  std::vector<float> gathered_;                 // [ranks, rows, vocab_shard], leader
  std::vector<float> logits_;                   // [rows, vocab_size], leader
  std::vector<int32_t> drawn_rows_;
  std::vector<kernels::DrawnToken> drawn_;
  kernels::RowDraw row_draw_;  // where the backend cannot read the host's memory
  std::vector<kernels::DrawnToken> host_drawn_;
};

}  // namespace lowkey::worker
