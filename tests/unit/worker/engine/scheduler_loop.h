// The scheduler alone, in a loop without a clock or a model: a sampled token is a number, a page is memory.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "worker/engine/scheduler.h"

namespace lowkey::worker {

class Loop {
 public:
  Loop(SchedulerOptions options, const kernels::PageLayout& layout, kvstore::PageMemoryOptions memory)
      : options_(options),
        memory_(std::move(kvstore::PageMemory::make(layout, std::move(memory))).value()),
        pool_(*memory_),
        scheduler_(options, pool_, {}) {}

  // `prefix`: equal ones have equal tokens, as far as they go; 0: nobody else's.
  uint64_t add(int prompt, int max_tokens, uint64_t prefix = 0) {
    auto sequence = std::make_unique<Sequence>();
    const uint64_t id = sequence->id = next_id_++;
    sequence->request_id = id;
    sequence->prompt_tokens = prompt;
    sequence->sampling.max_tokens = max_tokens;
    sequence->root = prefix > 0 ? Hash128{prefix, 0} : Hash128{id, id};
    for (int i = 0; i < prompt; ++i) sequence->tokens.push_back(i);
    scheduler_.add(std::move(sequence));
    return id;
  }

  // Schedules, "computes" and commits one step.
  const Schedule& step(int prefill_beside_decodes = std::numeric_limits<int>::max()) {
    ++steps_;
    schedule_ = scheduler_.schedule(prefill_beside_decodes);
    int tokens = 0;
    std::set<uint64_t> seen;
    for (const ScheduledSequence& scheduled : schedule_.sequences) {
      EXPECT_TRUE(seen.insert(scheduled.sequence->id).second) << "planned twice";
      EXPECT_GE(scheduled.num_tokens, 1);
      EXPECT_LE(scheduled.num_tokens, scheduled.sequence->remaining());
      EXPECT_TRUE(scheduled.sequence->tail);
      tokens += scheduled.num_tokens;
      last_step_[scheduled.sequence->id] = steps_;
    }
    EXPECT_LE(tokens, options_.step_tokens);
    EXPECT_EQ(tokens, schedule_.prefill_tokens + schedule_.decode_tokens);
    EXPECT_LE(scheduler_.running(), static_cast<size_t>(options_.max_batch));
    const kvstore::Ledger ledger = pool_.ledger();
    EXPECT_LE(ledger.used, ledger.capacity);
    EXPECT_EQ(ledger.capacity, ledger.used + ledger.evictable + ledger.free + ledger.slack);
    for (const ScheduledSequence& scheduled : schedule_.sequences) commit(scheduled);
    return schedule_;
  }

  bool ended(uint64_t id) { return scheduler_.find(id) == nullptr; }
  Sequence* find(uint64_t id) { return scheduler_.find(id); }
  Scheduler& scheduler() { return scheduler_; }
  kvstore::PagePool& pool() { return pool_; }
  const std::vector<uint64_t>& order() const { return order_; }
  int last_step(uint64_t id) { return last_step_[id]; }
  int steps() const { return steps_; }
  int64_t computed() const { return computed_; }  // tokens, those that were computed again as well

 private:
  void commit(const ScheduledSequence& scheduled) {
    Sequence& sequence = *scheduled.sequence;
    const bool sampled = scheduled.wants_logits();
    const int before = sequence.computed;
    if (std::ranges::any_of(sequence.pages, [&](const kvstore::PageRef& page) {
          return page && page.levels() < memory_->layout().num_levels;
        }))
      sequence.tainted_from = std::min(sequence.tainted_from, before);
    sequence.computed += scheduled.num_tokens;
    computed_ += scheduled.num_tokens;
    sequence.known_to_ranks = true;
    if (memory_->archive()) {
      archive(sequence, before, scheduled);
    } else {
      publish(sequence, before / memory_->layout().page_tokens);
    }
    if (!sampled) return;
    sequence.tokens.push_back(7);
    if (sequence.generated() < sequence.sampling.max_tokens) return;
    order_.push_back(sequence.id);
    scheduler_.remove(sequence);
  }

  void publish(Sequence& sequence, int first_page) {
    const int page_tokens = memory_->layout().page_tokens;
    const int complete = std::min(sequence.computed, sequence.tainted_from) / page_tokens;
    Scheduler::extend_identities(sequence, complete, page_tokens);
    for (int page = first_page; page < complete; ++page) {
      pool_.publish(sequence.pages[page], sequence.identities[page],
                    std::span(sequence.tokens).subspan(page * page_tokens, page_tokens));
    }
  }

  // No chunk crosses the end of the prompt or of a block; there it holds all pages that the move needs.
  void archive(Sequence& sequence, int before, const ScheduledSequence& scheduled) {
    const kvstore::ArchiveSpec& spec = *memory_->archive();
    const kvstore::TokenBudget budget = spec.budget(sequence.prompt_tokens);
    if (before < sequence.prompt_tokens) {
      EXPECT_LE(sequence.computed, sequence.prompt_tokens);
      EXPECT_EQ(scheduled.compacts, sequence.computed == sequence.prompt_tokens);
      EXPECT_EQ(static_cast<bool>(sequence.scores), memory_->score_bytes(1) > 0);
    } else {
      const int blocks = (budget.exact + sequence.computed - sequence.prompt_tokens) / spec.block_tokens;
      const int slots =
          budget.exact + sequence.computed - sequence.prompt_tokens - blocks * spec.block_tokens;
      EXPECT_EQ(scheduled.compacts, slots == 0);
      EXPECT_EQ(sequence.next_slot(), scheduled.compacts ? spec.block_tokens : slots);
    }
    if (!scheduled.compacts) return;
    const int answered = sequence.computed - sequence.prompt_tokens;
    EXPECT_EQ(sequence.archive.pages(), spec.after(sequence.prompt_tokens, answered).archived_pages);
    sequence.tokens_archived(sequence.prompt_archived ? 0 : budget.exact);
  }

  SchedulerOptions options_;
  std::unique_ptr<kvstore::PageMemory> memory_;
  kvstore::PagePool pool_;
  Scheduler scheduler_;
  Schedule schedule_;
  uint64_t next_id_ = 1;
  int steps_ = 0;
  int64_t computed_ = 0;
  std::map<uint64_t, int> last_step_;
  std::vector<uint64_t> order_;
};

}  // namespace lowkey::worker
