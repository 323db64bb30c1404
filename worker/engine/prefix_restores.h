// Prefix pages on their way back from a store: which, for whom, and how far every rank has got. Leader only.
//
// A restore reserves its pages before it asks and holds them until every rank has answered, also when nobody
// waits any more: a late transfer must not land in memory that belongs to someone else. What counts is the
// shortest run over the ranks.
//
// Thread rule: the step thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "worker/engine/scheduler.h"

namespace lowkey::wire {
class RestoreCommand;
}

namespace lowkey::worker {

struct PrefixRestoreOptions {
  int num_ranks = 1;
  Duration wait = std::chrono::seconds(2);  // longest that a sequence waits; then it computes
  size_t max_in_flight = 16;                // sequences beyond it stay in the queue
};

class PrefixRestores {
 public:
  using Send = std::function<void(const wire::RestoreCommand&)>;  // to every rank, this one included

  // A restore that every rank has answered.
  struct Finished {
    uint64_t sequence_id = 0;  // 0: nobody waits any more
    size_t first_page = 0;
    size_t restored = 0;              // pages in place on all ranks, published
    std::vector<Hash128> identities;  // of all pages asked for
    std::string miss_reason;          // why the run ended early; empty when complete
  };

  PrefixRestores(const PrefixRestoreOptions& options, kvstore::PagePool& pool, Send send);

  // Decides about the pages behind the sequence's device hits. When kFetching, the reserved pages are
  // appended to sequence.pages and the command is out.
  Scheduler::Prefix begin(Sequence& sequence);

  // One rank's answer. Publishes what is in place once all have answered.
  std::optional<Finished> on_result(int rank, uint64_t restore_id, size_t pages, const std::string& reason);

  // Ids of sequences that have waited long enough: each is told once, and its reserved pages are no longer
  // its own.
  std::vector<uint64_t> expire();
  std::optional<TimePoint> next_deadline() const;

  size_t in_flight() const { return records_.size(); }

 private:
  struct Record {
    uint64_t sequence_id = 0;
    size_t first_page = 0;
    std::vector<kvstore::PageRef> pages;
    std::vector<Hash128> identities;
    std::vector<int32_t> tokens;
    std::vector<bool> answered;  // by rank
    size_t outstanding = 0;
    size_t restored = 0;
    std::string miss_reason;
    Deadline deadline{TimePoint()};
  };

  PrefixRestoreOptions options_;
  kvstore::PagePool* pool_;
  Send send_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Record> records_;
};

}  // namespace lowkey::worker
