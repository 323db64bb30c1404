// Who computes what in the next step: continuous batching with chunked prefill. Pure bookkeeping on the
// leader.
//
// Sequences come in the order of their priorities, of equal ones in the order of their arrival; "older" below
// means before another one in that order.
//
// - Every decode gets its token in every step; prefills share the rest of the token budget, oldest first.
// Where
//   decodes alone would fill the budget, an eighth of it (with tiny budgets: every other step, one token) is
//   kept for prefills and decodes take turns, so neither starves. How many prompt tokens a step takes in
//   beside decodes the caller bounds: whoever decodes waits for all of them.
// - Admission is first come, first served, by byte forecast (worker/engine/memory_forecast.h).
// - When memory runs out nevertheless, pages become coarser (worker/engine/pressure_ladder.h). Then the
// youngest
//   running sequence gives way to an older one and is recomputed later; its published pages stay findable, so
//   most of that is a prefix hit. The oldest is never preempted and may take from all others: it always
//   finishes.
// - Slabs of one size may lie so that no superblock is left for another size: once nobody else is left to
// give
//   way, the oldest gives up what it has found, too, and everything that is idle, and is computed anew,
//   alone.
// - What is found behind a gap is not computed again: a prefill ends at the next whole page that is there.
// - A page is computed once: who would compute what a running sequence is about to publish waits for it, and
//   others are admitted meanwhile. What a sequence finds at its arrival counts as just used, so that it is
//   still there at its turn if memory allows.
// - Where the recipe has an archive, no chunk crosses the end of a prompt or of a block of exact tokens:
// there
//   tokens move to archived pages, also when a preempted sequence is computed again, so that each sees what
//   it saw before. The forecast counts the whole prompt exact beside its archived pages. Such pages are not
//   shared.
//
// Thread rule: the step thread only. The pool outlives the scheduler.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "kvstore/page/page_pool.h"
#include "worker/engine/memory_forecast.h"
#include "worker/engine/pressure_ladder.h"
#include "worker/engine/sequence.h"

namespace lowkey::worker {

struct SchedulerOptions {
  int step_tokens = 512;  // budget of one step, >= 1
  int max_batch = 64;     // sequences that hold memory together, >= 1
  bool ladder = true;     // when memory is short, pages become coarser before anybody gives way
};

struct ScheduledSequence {
  Sequence* sequence;
  int num_tokens;   // from sequence->computed on
  bool compacts;    // then its own tokens move to archived pages, which it holds already
  bool all_logits;  // of every token, for log-probabilities of its prompt
  bool wants_logits() const { return num_tokens == sequence->remaining(); }
  size_t num_logits() const { return all_logits ? num_tokens : wants_logits() ? 1 : 0; }
};

struct Schedule {
  std::vector<ScheduledSequence> sequences;  // each at most once
  std::vector<uint64_t> released;            // ids that ranks shall forget before this step
  int prefill_tokens = 0;
  int decode_tokens = 0;
  int scored_tokens = 0;  // of them all logits are wanted
};

class Scheduler {
 public:
  // What becomes of a sequence's prefix beyond its device hits, asked at admission.
  enum class Prefix {
    kCompute,   // nothing to fetch
    kFetching,  // pages are on their way: restored() will be called
    kLater      // another sequence is fetching the same, or too many are: ask again in a later step
  };
  using FetchPrefix = std::function<Prefix(Sequence&)>;

  Scheduler(const SchedulerOptions& options, kvstore::PagePool& pool, FetchPrefix fetch_prefix);

  void add(std::unique_ptr<Sequence> sequence);
  // `prefill_beside_decodes`: most prompt tokens of a step in which others decode, >= 1.
  Schedule schedule(int prefill_beside_decodes = std::numeric_limits<int>::max());
  void restored(Sequence& sequence);  // its fetch has ended: it runs from `computed` on
  void remove(Sequence& sequence);    // finished or cancelled; returns all its memory

  Sequence* find(uint64_t sequence_id);
  Sequence* find_request(uint64_t request_id);
  const std::map<uint64_t, std::unique_ptr<Sequence>>& sequences() const { return sequences_; }  // by id

  size_t running() const { return running_.size() + restoring_; }
  size_t waiting() const { return waiting_.size(); }
  bool has_released() const { return !released_.empty(); }
  uint64_t preemptions() const { return preemptions_; }
  uint64_t prefix_queries() const { return prefix_queries_; }  // prompt tokens looked up
  uint64_t computed_elsewhere() const {
    return computed_elsewhere_;
  }  // waited for another to compute the same
  // Known tokens that are still to be computed, as far as they are not expected to be found: of all
  // sequences, or of those that have started.
  uint64_t queued_tokens(bool waiting) const;

  // The identities of the first `pages` pages of a sequence.
  static void extend_identities(Sequence& sequence, size_t pages, int page_tokens);

 private:
  enum class Admission { kRunning, kRestoring, kNoRoom, kLater };

  static void insert_in_order(std::vector<Sequence*>& list, Sequence* sequence);

  void schedule_decodes(Schedule* plan, int budget);
  int schedule_prefills(Schedule* plan, int budget);
  void admit(Schedule* plan, int budget);
  Admission try_start(Sequence& sequence);
  bool forecast_fits(Sequence& candidate, uint64_t idle_before);
  std::vector<kvstore::PageRef> device_hits(Sequence& sequence);
  bool is_being_computed(Sequence& sequence);
  void expect(Sequence& sequence);
  size_t pages_to_find(const Sequence& sequence) const;
  int take_found(Sequence& sequence, int wanted);
  std::vector<Sequence*> holders() const;
  bool drop_in_use();
  bool hold_memory(Sequence& sequence);
  void make_room(const Sequence& sequence);
  int tokens_to_compaction(const Sequence& sequence) const;
  bool grow_archive(Sequence& sequence, Schedule* plan);
  int plan_tokens(Sequence& sequence, int wanted, Schedule* plan);
  void preempt_youngest(Schedule* plan);
  bool is_stuck(const Sequence& sequence) const;
  void start_over(Sequence& sequence, Schedule* plan);
  void give_way(Sequence& victim, Schedule* plan);
  int prefill_reserve();
  void forget(Sequence& sequence);

  SchedulerOptions options_;
  kvstore::PagePool* pool_;
  PressureLadder ladder_;
  MemoryForecast forecast_;
  FetchPrefix fetch_prefix_;
  const std::optional<kvstore::ArchiveSpec>& archive_;
  int page_tokens_;
  std::map<uint64_t, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> waiting_;  // both in order (Sequence::before)
  std::vector<Sequence*> running_;
  size_t restoring_ = 0;
  std::vector<uint64_t> released_;
  uint64_t steps_ = 0;
  uint64_t preemptions_ = 0;
  uint64_t prefix_queries_ = 0;
  uint64_t computed_elsewhere_ = 0;
  std::unordered_map<Hash128, uint32_t> promised_;  // pages of all prompts here -> how many have them
  size_t next_decode_ = 0;                          // whose turn it is when not all decodes fit
  bool preempted_ = false;                          // in this step: nobody is admitted
};

}  // namespace lowkey::worker
