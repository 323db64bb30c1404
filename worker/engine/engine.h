// The engine of one replica's leader: requests in, token events out, one step at a time.
//
// Threads: submit, cancel, drain, on_restore_result and state may be called from any thread; step and
// wait_for_work from the step thread only, where the ports are called too.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/deadline.h"
#include "base/hash128.h"
#include "base/result.h"
#include "kvstore/page/page_pool.h"
#include "monitoring/metrics.h"
#include "worker/engine/engine_ports.h"
#include "worker/engine/executor.h"
#include "worker/engine/grammar_masks.h"
#include "worker/engine/prefix_events.h"
#include "worker/engine/prefix_restores.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/spill_queue.h"

namespace lowkey::wire {
class RestoreResult;
class Submit;
class TokenEvent;
class TokenEvents;
class Compaction;
class CacheIdentity;
class PlannedSequence;
}  // namespace lowkey::wire

namespace lowkey::worker {

struct EngineOptions {
  ReadTokenTexts token_texts;  // for answers with a grammar; empty: those are refused
  SchedulerOptions scheduler;
  ExecutorOptions executor;
  Duration restore_wait = std::chrono::seconds(2);  // longest that a sequence waits for a store
  // Longest that an answer with a grammar waits for what that allows next.
  Duration grammar_wait = std::chrono::seconds(10);
  size_t max_waiting = 256;                // requests not yet started; more are refused
  int min_levels = 1;                      // that are read of every page, unless a request asks for more
  int spill_levels = kernels::kMaxLevels;  // that a store is given of a page
};

struct EngineState {
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint64_t max_sequence_tokens = 0;  // longest prompt + answer that can ever fit
  uint64_t kv_bytes_used = 0;
  uint64_t kv_bytes_capacity = 0;
  uint64_t queued_prompt_tokens = 0;  // Scheduler::queued_tokens() of all sequences
  MeasuredRates rates;
  bool draining = false;
  bool broken = false;  // a step was lost: nothing runs any more, the process should go
};

class Engine {
 public:
  // Everything named outlives the engine; whoever serves `ports.restore` must have stopped writing before it
  // goes.
  Engine(const EngineOptions& options, Model& model, kvstore::PageMemory& memory, transport::HostComm& comm,
         EnginePorts ports, monitoring::Metrics& metrics);
  ~Engine();

  // Errors: kInvalidArgument (with the parameter), kResourceExhausted (queue full), kUnavailable (draining,
  // broken). After success every outcome arrives through ports.emit, the last event with a finish reason.
  Status submit(const wire::Submit& request);
  void cancel(uint64_t request_id);  // takes effect in the next step; unknown ids are ignored
  void cancel_all();                 // the same for every request that was submitted
  // Refuses new requests; running and waiting ones end as usual. Wakes wait_for_work().
  void drain();
  void on_restore_result(int rank, const wire::RestoreResult& result);
  void resync_prefixes();  // the findable pages are announced anew
  EngineState state() const;
  void describe_cache(wire::CacheIdentity* out) const;
  int num_levels() const { return memory_.layout().num_levels; }
  uint64_t page_bytes(int levels) const;  // of a page without sink on this rank

  // One iteration. False when there was nothing to do.
  bool step();
  // Returns when there may be work for step(), or at the deadline.
  void wait_for_work(Deadline deadline);

 private:
  // What other threads leave for the step thread.
  struct Inbox {
    std::mutex mutex;
    std::condition_variable arrived;
    std::vector<std::unique_ptr<Sequence>> submitted;
    std::vector<uint64_t> cancelled;
    std::vector<RestoreAnswer> restores;
    std::vector<SpilledPage> spilled;
    std::unordered_set<uint64_t> live;  // request ids that have not ended
    EngineState state;
    uint64_t next_sequence_id = 1;
    bool work_left = false;  // the last step ended with more to do
    bool woken = false;      // by drain(): its caller may wait for the step thread to notice
    bool resync = false;
    bool grammar_ready = false;        // of a sequence that waits for it
    std::optional<TimePoint> wake_at;  // for what has waited long enough then

    void answer(int rank, const wire::RestoreResult& result);
    void add_spilled(const std::vector<SpilledPage>& pages);
  };
  struct Step {
    Schedule schedule;
    std::vector<PendingSpill> spills;
    std::vector<kvstore::PageRef> pinned;  // pages being copied for a store
    kvstore::Ledger device;
    uint64_t used_pages = 0, evictable_pages = 0;
    TimePoint start = Clock::now();
    bool empty() const { return schedule.sequences.empty() && schedule.released.empty() && spills.empty(); }
  };

  struct PagesRead {  // by the sequences of a step
    std::array<uint64_t, kernels::kMaxLevels + 1> at_levels{};
    uint64_t coarse_tokens = 0;
  };

  // The next token of a scheduled sequence, or how it is found.
  struct Choice {
    std::optional<Result<SampledToken>> token;
    std::optional<kernels::TokenDraw> draw;  // from its row of the logits
    bool has_rules = false;                  // that row is changed
    bool waits = false;                      // for what its grammar allows
  };

  Result<std::unique_ptr<Sequence>> admit(const wire::Submit& request);
  bool fits(uint64_t prompt, uint64_t generated) const;
  Step schedule();
  Status execute(const Step& step);
  std::vector<kernels::TokenDraw> plan_draws(const Schedule& schedule) const;
  bool commit(const Step& step, const Status& status);

  void take_inbox();
  bool take_submitted();
  void on_landed(const RestoreCommands::Landed& landed);
  void run_on(const PrefixRestores::Ready& ready);
  void offer_spill(const PendingSpill& page);
  void plan_spills(Step* step);
  void offer_unstored();
  void on_spilled(const std::vector<SpilledPage>& pages);
  void follow_stores(uint64_t stores);
  void count_spills(const char* outcome, size_t pages);
  void plan_pages(Sequence& sequence, int num_tokens, wire::PlannedSequence* planned, PagesRead* read);
  void plan_compaction(Sequence& sequence, wire::Compaction* compaction) const;
  size_t commit_sequence(const ScheduledSequence& scheduled, const Choice& choice, size_t row,
                         wire::TokenEvents* events);
  void score_prompt(Sequence& sequence, int first, int count, size_t row, wire::TokenEvents* events);
  uint64_t used_pages() const;
  void count_tokens(Sequence& sequence, int before, int num_tokens);
  void report_first(Sequence& sequence, wire::TokenEvent* event);
  void publish_pages(Sequence& sequence, int first_page);
  std::vector<int32_t> end_tokens(const Sequence& sequence) const;
  void choose_tokens(const Step& step);
  Choice choose(Sequence& sequence, std::span<float> logits, Deadline wait);
  void settle(const Sequence& sequence, const kernels::DrawnToken& drawn, Choice* choice) const;
  void tell_token(Sequence& sequence, const Result<SampledToken>& sampled, wire::TokenEvents* events);
  void append(Sequence& sequence, const SampledToken& sampled, wire::TokenEvent* event);
  void resume_parked();
  void finish(Sequence& sequence);
  void fail_all(const Error& error);
  void emit(const wire::TokenEvents& events);
  void send_prefix_events();
  void update_state(bool work_left);
  void count_step(const Step& step);
  void count_pages_read(const PagesRead& read);

  const EngineOptions options_;
  Model& model_;
  kvstore::PageMemory& memory_;
  const EnginePorts ports_;
  monitoring::Metrics& metrics_;
  const int num_ranks_;
  std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
  kvstore::PagePool pool_;
  Executor executor_;
  CostModel cost_;
  PrefixRestores restores_;
  GrammarMasks grammars_;
  SpillQueue spills_;
  uint64_t stores_ = 0;                // EnginePorts::stores, as it was last seen
  kvstore::PageId next_unstored_ = 0;  // of PagePool::unstored()
  PrefixEventQueue prefix_events_;
  Scheduler scheduler_;
  std::vector<Choice> choices_;                           // of the step's sequences
  std::vector<kernels::TokenDraw> draws_;                 // of them, on the host
  std::vector<uint64_t> parked_;                          // sequences that may be
  std::vector<std::unique_ptr<wire::TokenEvent>> ended_;  // by cancellation, to be emitted with the next step
  uint64_t step_number_ = 0;
  uint64_t preemptions_counted_ = 0, queries_counted_ = 0, waits_counted_ = 0;
  struct {
    uint64_t evictions = 0, idle_drops = 0, in_use_drops = 0;
  } counted_;
  bool broken_ = false;
};

}  // namespace lowkey::worker
