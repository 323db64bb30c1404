// Prefixes on their way back from the stores: what is fetched at an admission, who waits for it, and which
// pages get finer while their sequence runs. Leader only.
//
// At its admission a sequence has the pages that were found on the device, some of them perhaps below all
// levels, and may have more in the stores. The cost model chooses: everything is fetched and then it starts;
// or the levels that it must have, with more of the pages that matter most as far as a fixed share of the
// whole time allows, and the others while it runs, level by level in batches of about a step; or the prefix
// is computed. What matters most is the first page, which attention keeps returning to, and then the newest.
// A page of which the upper levels cannot be had stays as it is. Where everything was asked for and a page is
// not whole any more, the levels that must be are asked for alone. Where a page cannot be had at all, those
// behind it are fetched as well: the sequence computes the gap and goes on behind them
// (Scheduler::take_found()), so that the loss of one of several stores costs its own pages alone.
//
// A sequence waits for a bounded time, then it computes what is not there. While a store owes an answer
// beyond its time nobody else waits for it.
//
// Thread rule: the step thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "worker/engine/cost_model.h"
#include "worker/engine/restore_commands.h"
#include "worker/engine/scheduler.h"

namespace lowkey::worker {

struct PrefixRestoreOptions {
  int num_ranks = 1;
  int store_levels = kernels::kMaxLevels;   // that a store can have of a page
  Duration wait = std::chrono::seconds(2);  // longest that a sequence waits beyond the predicted time
  size_t max_waiting = 16;                  // sequences beyond it stay in the queue
  size_t max_refining = 2;                  // commands in flight that nobody waits for
  // Of one of them on one rank: what arrives during a step, at most so much (before anything was measured a
  // quarter of it), or one page.
  uint64_t refining_bytes = 16ull << 20;
};

class PrefixRestores {
 public:
  using Decision = PrefixForecast::Decision;
  // One lookup message names at most this many pages (kvstore/service); longer prefixes compute the rest.
  static constexpr size_t kMaxPages = 4096;

  struct Hooks {
    RestoreCommands::Send send;
    std::function<Sequence*(uint64_t sequence_id)> find;  // null: ended
    std::function<uint64_t()> queued_tokens;              // to be computed before a new sequence's
    std::function<void(const char* decision)> decided;    // restore, progressive, recompute or wait
  };

  // A sequence that has waited to the end: `computed` and its pages are set, it can run.
  struct Ready {
    uint64_t sequence_id = 0;
    int restored_tokens = 0;
    int disk_tokens = 0;  // of those
    bool late = false;    // the time was up
    double seconds = 0;   // since its admission
    PrefixForecast forecast;
    std::string reason;  // why not everything came; empty when all did
  };

  PrefixRestores(const PrefixRestoreOptions& options, kvstore::PagePool& pool, CostModel& cost, Hooks hooks);

  // Decides about the prefix of a sequence that holds its device hits. When kFetching, the pages it waits for
  // are appended to sequence.pages and the commands are out.
  Scheduler::Prefix begin(Sequence& sequence);

  // One rank's answer; what it completes, if anything.
  std::optional<RestoreCommands::Landed> on_answer(const RestoreAnswer& answer);
  // After on_answer: who needs to wait no longer, and those whose time is up.
  std::vector<Ready> take_ready();
  std::optional<TimePoint> next_deadline() const;

  // Once per step: asks for upper levels of running sequences' pages, as far as the bounds allow.
  void refine();
  void forget(uint64_t sequence_id);  // ended

  size_t in_flight() const { return commands_.in_flight(); }

 private:
  // A sequence that waits.
  struct Wait {
    std::vector<uint8_t> first_levels;  // [page] with which it would start
    int levels = 0;                     // of any page, asked for
    bool asked_behind = false;          // the first gap, for what it will find once that is computed
    size_t ready = 0;                   // pages that were, at the admission
    PrefixForecast forecast;
    size_t commands = 0;  // that are not answered
    std::string sources;  // [page] of what has come, as in RestoreAnswer
    TimePoint begin = Clock::now();
    Deadline deadline{TimePoint()};
    std::string reason;
  };
  // A running sequence whose pages get finer. `level`: what a page had when it was last looked at.
  struct Refinement {
    struct Item {
      size_t index;
      int level;
      bool tried = false;  // level `level` was asked for
    };
    uint64_t sequence_id = 0;
    std::vector<Item> items;
    std::string reason;
  };
  // What a sequence lacks at its admission.
  struct Missing {
    size_t hits = 0;         // pages found on the device, at any number of levels
    size_t ready = 0;        // the leading ones with which it could start
    size_t limit = 0;        // pages that it could have: the last token is always computed
    size_t needed_from = 0;  // pages before it would be behind the window: not fetched
    bool coarse = false;     // a hit is below all levels, and the stores might have more of it
    bool in_flight = false;  // the first page that is not ready is on its way for somebody else
    PrefixQuestion question;
  };

  // The pages in the order in which they matter: attention keeps returning to the first one, and reads the
  // newest most.
  static size_t page_of_rank(size_t rank, size_t count) { return rank == 0 ? 0 : count - rank; }

  Missing survey(Sequence& sequence) const;
  Scheduler::Prefix wait(Sequence& sequence) const;
  Scheduler::Prefix recompute(Sequence& sequence, const Missing& missing, const PrefixForecast& forecast);
  Scheduler::Prefix fetch(Sequence& sequence, const Missing& missing, const PrefixForecast& forecast);
  bool is_short(uint64_t bytes) const;
  std::vector<uint8_t> first_levels(const Sequence& sequence, const Missing& missing,
                                    const PrefixForecast& forecast) const;
  size_t raise(Sequence& sequence, std::span<const uint8_t> levels, bool gaps);
  void send(const Sequence& sequence, const std::vector<size_t>& pages, PageFetch fetch);
  bool answers(const Wait& wait) const;
  void ask_again(Sequence& sequence, Wait& wait);
  Ready finish(Sequence& sequence, const Wait& wait, bool late);
  void start_refining(const Sequence& sequence);
  void look_again(const Sequence& sequence, Refinement* refinement) const;
  bool next_batch(Sequence& sequence, Refinement* refinement);
  uint64_t batch_bytes() const;

  PrefixRestoreOptions options_;
  kvstore::PagePool* pool_;
  CostModel* cost_;
  Hooks hooks_;
  const int num_levels_;  // that can be had: of the layout, as far as stores keep them
  const int page_tokens_;
  RestoreCommands commands_;
  std::map<uint64_t, Wait> waits_;  // by sequence id
  std::vector<Refinement> refining_;
  bool lossy_ = false;  // what the stores gave so far came through a lossy format
};

}  // namespace lowkey::worker
