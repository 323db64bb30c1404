#include "worker/engine/scheduler.h"

#include <algorithm>
#include <limits>

namespace lowkey::worker {

using kvstore::PageRef;

namespace {

// Tokens of a step whose logits are all wanted: 16 MB of them at a vocabulary of 128k.
constexpr int kScoredTokens = 32;

}  // namespace

void Scheduler::insert_in_order(std::vector<Sequence*>& list, Sequence* sequence) {
  const auto before = [](const Sequence* a, const Sequence* b) { return a->before(*b); };
  list.insert(std::lower_bound(list.begin(), list.end(), sequence, before), sequence);
}

Scheduler::Scheduler(const SchedulerOptions& options, kvstore::PagePool& pool, FetchPrefix fetch_prefix)
    : options_(options),
      pool_(&pool),
      ladder_(pool, options.ladder && pool.memory().layout().num_levels > 1),
      forecast_(pool, options.step_tokens),
      fetch_prefix_(std::move(fetch_prefix)),
      archive_(pool.memory().archive()),
      page_tokens_(pool.memory().layout().page_tokens) {}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  if (!archive_) expect(*sequence);
  insert_in_order(waiting_, sequence.get());
  sequences_.emplace(sequence->id, std::move(sequence));
}

Schedule Scheduler::schedule(int prefill_beside_decodes) {
  Schedule plan;
  ladder_.forget_marks();  // tokens were computed, pages came and went
  preempted_ = false;
  ++steps_;
  schedule_decodes(&plan, options_.step_tokens - prefill_reserve());
  int budget = options_.step_tokens - plan.decode_tokens;
  if (plan.decode_tokens > 0) budget = std::min(budget, prefill_beside_decodes);
  admit(&plan, schedule_prefills(&plan, budget));
  plan.released = std::exchange(released_, {});
  return plan;
}

int Scheduler::prefill_reserve() {
  const bool prefills = !waiting_.empty() ||
                        std::ranges::any_of(running_, [](const Sequence* s) { return s->remaining() > 1; });
  if (!prefills) return 0;
  return options_.step_tokens >= 8 ? options_.step_tokens / 8 : static_cast<int>(steps_ % 2);
}

void Scheduler::schedule_decodes(Schedule* plan, int budget) {
  std::vector<Sequence*> decodes;
  for (Sequence* sequence : running_) {
    if (sequence->remaining() == 1) decodes.push_back(sequence);
  }
  if (decodes.empty()) return;
  if (static_cast<int>(decodes.size()) > budget) {
    std::rotate(decodes.begin(), decodes.begin() + next_decode_ % decodes.size(), decodes.end());
    next_decode_ += budget;
  }
  for (Sequence* sequence : decodes) {
    if (plan->decode_tokens >= budget) break;
    if (sequence->state != Sequence::State::kRunning) continue;  // gave way to an older one meanwhile
    plan_tokens(*sequence, 1, plan);
  }
}

int Scheduler::schedule_prefills(Schedule* plan, int budget) {
  const std::vector<Sequence*> snapshot = running_;
  for (Sequence* sequence : snapshot) {
    if (budget <= 0) break;
    if (sequence->state != Sequence::State::kRunning || sequence->remaining() <= 1) continue;
    budget -= plan_tokens(*sequence, std::min(budget, sequence->remaining()), plan);
  }
  return budget;
}

// Plans up to `wanted` tokens and reserves the pages they complete; pages become coarser, then younger
// sequences give way. Returns how many it could: fewer, or none, when the memory is with older sequences or
// restores, until those let go.
int Scheduler::plan_tokens(Sequence& sequence, int wanted, Schedule* plan) {
  if (sequence.remaining() > 1) wanted = take_found(sequence, wanted);
  const int to_compaction = tokens_to_compaction(sequence);
  wanted = std::min(wanted, to_compaction);
  const bool scores = sequence.scores_prompt();
  if (scores) wanted = std::min(wanted, kScoredTokens - plan->scored_tokens);
  if (wanted <= 0) return 0;  // in a later step
  const size_t pages = (sequence.next_slot() + wanted) / page_tokens_;
  const auto room = [&] {
    return static_cast<int>(sequence.pages.size() + 1) * page_tokens_ - 1 - sequence.next_slot();
  };
  while (sequence.pages.size() < pages) {
    if (auto page = pool_->allocate(sequence.pages.empty())) {
      sequence.pages.push_back(std::move(*page));
    } else if (drop_in_use()) {
      continue;
    } else if (ladder_.drops_levels() && room() > 0) {
      break;  // what is computed now can become coarser after this step
    } else if (running_.back() != &sequence) {
      preempt_youngest(plan);
    } else {
      if (room() <= 0 && is_stuck(sequence)) start_over(sequence, plan);
      break;
    }
  }
  if (sequence.state != Sequence::State::kRunning) return 0;  // it has started over
  const int count = std::min(wanted, room());
  if (count <= 0) return 0;
  const bool compacts = count == to_compaction;
  if (compacts && !grow_archive(sequence, plan)) return 0;
  (sequence.remaining() == 1 ? plan->decode_tokens : plan->prefill_tokens) += count;
  if (scores) plan->scored_tokens += count;
  plan->sequences.push_back({&sequence, count, compacts, scores});
  return count;
}

// How many tokens can be computed before tokens move to archived pages.
int Scheduler::tokens_to_compaction(const Sequence& sequence) const {
  if (!archive_) return std::numeric_limits<int>::max();
  if (!sequence.prompt_archived) return sequence.prompt_tokens - sequence.computed;
  return archive_->block_tokens - sequence.next_slot();
}

// Pages for what moves at the next compaction; younger sequences give way.
bool Scheduler::grow_archive(Sequence& sequence, Schedule* plan) {
  std::vector<int> pages = sequence.archive.pages();
  if (!sequence.prompt_archived) {
    pages = archive_->at_prompt_end(sequence.prompt_tokens).archived_pages;
  } else {
    for (int& count : pages) count += archive_->block_tokens / page_tokens_;
  }
  while (!sequence.archive.grow(pages)) {
    if (running_.back() == &sequence) return false;
    preempt_youngest(plan);
  }
  return true;
}

void Scheduler::preempt_youngest(Schedule* plan) {
  Sequence& victim = *running_.back();
  victim.expected = std::min(victim.computed, victim.tainted_from) / page_tokens_ * page_tokens_;
  victim.report.note(fmt::format("gave way to an older request at token {}", victim.computed));
  give_way(victim, plan);
}

// All pages that anybody holds are its own, and nothing of them is still to land, after which it could become
// coarser.
bool Scheduler::is_stuck(const Sequence& sequence) const {
  const int all = pool_->memory().layout().num_levels;
  const auto any_page = [&](auto is) {
    return std::ranges::any_of(sequence.pages, [&](const PageRef& page) { return page && is(page); });
  };
  return !archive_ && running() == 1 && pool_->used_pages() == sequence.held_pages() &&
         !any_page([&](const PageRef& page) { return pool_->is_growing(page.id()); }) &&
         (!sequence.runs_alone || any_page([&](const PageRef& page) { return page.levels() < all; }));
}

// It fits when it is computed in order into memory that is empty (Engine::submit has seen to that).
void Scheduler::start_over(Sequence& sequence, Schedule* plan) {
  sequence.runs_alone = true;
  sequence.expected = 0;
  sequence.report.note(fmt::format("started over at token {}: its pages lay in the way", sequence.computed));
  give_way(sequence, plan);
  pool_->evict_all();
}

void Scheduler::give_way(Sequence& victim, Schedule* plan) {
  std::erase(running_, &victim);
  std::erase_if(plan->sequences, [&](const ScheduledSequence& scheduled) {
    if (scheduled.sequence != &victim) return false;
    (victim.remaining() == 1 ? plan->decode_tokens : plan->prefill_tokens) -= scheduled.num_tokens;
    if (scheduled.all_logits) plan->scored_tokens -= scheduled.num_tokens;
    return true;
  });
  forget(victim);
  ++victim.report.preemptions;
  victim.release_memory();
  ladder_.forget_marks();
  victim.state = Sequence::State::kWaiting;
  insert_in_order(waiting_, &victim);
  ++preemptions_;
  preempted_ = true;
}

bool Scheduler::drop_in_use() {
  if (!ladder_.marked()) ladder_.mark(holders());
  return ladder_.drop_in_use();
}

std::vector<Sequence*> Scheduler::holders() const {
  std::vector<Sequence*> holders;
  for (const auto& [id, sequence] : sequences_) {
    if (!sequence->pages.empty()) holders.push_back(sequence.get());
  }
  return holders;
}

void Scheduler::restored(Sequence& sequence) {
  LOWKEY_CHECK(sequence.state == Sequence::State::kRestoring, "sequence {}", sequence.id);
  --restoring_;
  sequence.state = Sequence::State::kRunning;
  insert_in_order(running_, &sequence);
}

void Scheduler::remove(Sequence& sequence) {
  forget(sequence);
  forecast_.ended(sequence);
  if (sequence.state == Sequence::State::kRestoring) --restoring_;
  for (size_t page = 0; page < sequence.promised; ++page) {
    const auto promised = promised_.find(sequence.identities[page]);
    if (--promised->second == 0) promised_.erase(promised);
  }
  std::erase(running_, &sequence);
  std::erase(waiting_, &sequence);
  sequence.release_memory();
  sequences_.erase(sequence.id);
}

void Scheduler::forget(Sequence& sequence) {
  if (!std::exchange(sequence.known_to_ranks, false)) return;
  released_.push_back(sequence.id);
}

Sequence* Scheduler::find(uint64_t sequence_id) {
  const auto found = sequences_.find(sequence_id);
  return found == sequences_.end() ? nullptr : found->second.get();
}

Sequence* Scheduler::find_request(uint64_t request_id) {
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->request_id == request_id) return sequence.get();
  }
  return nullptr;
}

uint64_t Scheduler::queued_tokens(bool waiting) const {
  uint64_t tokens = 0;
  for (const auto& [id, sequence] : sequences_) {
    const bool waits = sequence->state == Sequence::State::kWaiting;
    const bool counts = waits ? waiting : waiting || sequence->state == Sequence::State::kRunning;
    if (!counts || sequence->remaining() <= 1) continue;
    tokens += sequence->remaining() - (waits ? sequence->expected : 0);
  }
  return tokens;
}

}  // namespace lowkey::worker
