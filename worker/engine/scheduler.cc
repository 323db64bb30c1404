#include "worker/engine/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kvstore/page/page_identity.h"

namespace lowkey::worker {

using kvstore::PageRef;

namespace {

// Pages at all levels beside coarse ones: of prefills, which take what is there, and of decodes, of which one
// in page_tokens completes a page in a step.
constexpr size_t kWholePages = 2, kSequencesOfAWholePage = 8;

constexpr double kAnswerWeight = 1.0 / 16;  // of the last answer in the mean share

// Tokens of a step whose logits are all wanted: 16 MB of them at a vocabulary of 128k.
constexpr int kScoredTokens = 32;

void insert_in_order(std::vector<Sequence*>& list, Sequence* sequence) {
  const auto before = [](const Sequence* a, const Sequence* b) { return a->before(*b); };
  list.insert(std::lower_bound(list.begin(), list.end(), sequence, before), sequence);
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, kvstore::PagePool& pool, FetchPrefix fetch_prefix)
    : options_(options),
      pool_(&pool),
      ladder_(pool, options.ladder && pool.memory().layout().num_levels > 1),
      fetch_prefix_(std::move(fetch_prefix)),
      archive_(pool.memory().archive()),
      page_tokens_(pool.memory().layout().page_tokens) {}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  if (!archive_) expect(*sequence);
  insert_in_order(waiting_, sequence.get());
  sequences_.emplace(sequence->id, std::move(sequence));
}

// Pages that could be found at all: the last token is always computed, its logits are wanted.
size_t Scheduler::pages_to_find(const Sequence& sequence) const {
  if (sequence.scores_prompt()) return 0;
  return (sequence.tokens.size() - 1) / page_tokens_;
}

void Scheduler::expect(Sequence& sequence) {
  std::vector<PageRef> hits = device_hits(sequence);
  const size_t pages = pages_to_find(sequence);
  extend_identities(sequence, pages, page_tokens_);
  size_t expected = hits.size();
  while (expected < pages && promised_.contains(sequence.identities[expected])) ++expected;
  sequence.expected = static_cast<int>(expected) * page_tokens_;
  for (const Hash128& page : sequence.identities) ++promised_[page];
  sequence.promised = pages;
  // Given back last page first, they are the ones used last.
  while (!hits.empty()) hits.pop_back();
}

Schedule Scheduler::schedule() {
  Schedule plan;
  ladder_.forget_marks();  // tokens were computed, pages came and went
  preempted_ = false;
  ++steps_;
  schedule_decodes(&plan, options_.step_tokens - prefill_reserve());
  const int rest = schedule_prefills(&plan, options_.step_tokens - plan.decode_tokens);
  admit(&plan, rest);
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
      break;
    }
  }
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
  running_.pop_back();
  std::erase_if(plan->sequences, [&](const ScheduledSequence& scheduled) {
    if (scheduled.sequence != &victim) return false;
    (victim.remaining() == 1 ? plan->decode_tokens : plan->prefill_tokens) -= scheduled.num_tokens;
    if (scheduled.all_logits) plan->scored_tokens -= scheduled.num_tokens;
    return true;
  });
  forget(victim);
  victim.expected = std::min(victim.computed, victim.tainted_from) / page_tokens_ * page_tokens_;
  ++victim.report.preemptions;
  victim.report.note(fmt::format("gave way to an older request at token {}", victim.computed));
  victim.release_memory();
  ladder_.forget_marks();
  victim.state = Sequence::State::kWaiting;
  insert_in_order(waiting_, &victim);
  ++preemptions_;
  preempted_ = true;
}

void Scheduler::admit(Schedule* plan, int budget) {
  for (auto next = waiting_.begin(); next != waiting_.end();) {
    // A sequence preempted in this step would only push out the next one.
    if (preempted_ || budget <= 0 || static_cast<int>(running()) >= options_.max_batch) return;
    Sequence& sequence = **next;
    switch (try_start(sequence)) {
      case Admission::kNoRoom:
        return;
      case Admission::kLater:
        ++next;
        break;
      case Admission::kRestoring:
        next = waiting_.erase(next);
        sequence.state = Sequence::State::kRestoring;
        ++restoring_;
        break;
      case Admission::kRunning:
        next = waiting_.erase(next);
        sequence.state = Sequence::State::kRunning;
        insert_in_order(running_, &sequence);
        budget -= plan_tokens(sequence, std::min(budget, sequence.remaining()), plan);
        break;
    }
  }
}

Scheduler::Admission Scheduler::try_start(Sequence& sequence) {
  const kvstore::Ledger before = pool_->ledger();
  sequence.pages = device_hits(sequence);
  ladder_.forget_marks();
  const auto give_up = [&](Admission why) {
    sequence.release_memory();
    ladder_.forget_marks();
    return why;
  };
  const size_t ready = sequence.ready_pages();
  sequence.computed = static_cast<int>(ready) * page_tokens_;
  if (is_being_computed(sequence)) {
    if (!std::exchange(sequence.waited, true)) {
      ++computed_elsewhere_;
      sequence.report.note("waited in the queue for another request to compute the same");
    }
    return give_up(Admission::kLater);
  }
  const bool fits = forecast_fits(sequence, before.free + before.evictable) || running() == 0;
  if (!fits || !hold_memory(sequence)) return give_up(Admission::kNoRoom);
  const bool fetches = fetch_prefix_ && !sequence.scores_prompt();
  if (fetches) make_room(sequence);
  const Prefix prefix = fetches ? fetch_prefix_(sequence) : Prefix::kCompute;
  ladder_.forget_marks();  // levels may be on their way
  if (prefix == Prefix::kLater) return give_up(Admission::kLater);
  if (prefix == Prefix::kCompute) sequence.keep_pages(ready);
  if (sequence.admissions++ == 0) {
    sequence.report.queue_seconds = seconds(Clock::now() - sequence.submitted);
    sequence.report.device_tokens = std::min(sequence.computed, sequence.prompt_tokens);
    if (!archive_) prefix_queries_ += sequence.prompt_tokens;
  }
  return prefix == Prefix::kFetching ? Admission::kRestoring : Admission::kRunning;
}

// What a sequence holds from its start on, besides pages.
bool Scheduler::hold_memory(Sequence& sequence) {
  auto tail = pool_->allocate_tail();
  while (!tail && drop_in_use()) tail = pool_->allocate_tail();
  if (!tail) return false;
  sequence.tail = std::move(*tail);
  if (!archive_) return true;
  kvstore::PageMemory& memory = pool_->memory();
  sequence.archive = kvstore::SequenceArchive(memory);
  sequence.archive_sent.assign(archive_->num_banks(), 0);
  if (memory.score_bytes(sequence.prompt_tokens) == 0) return true;
  auto scores = kvstore::ScoreSpace::allocate(memory, sequence.prompt_tokens);
  if (scores) sequence.scores = std::move(*scores);
  return scores.has_value();
}

// For pages that may come from a store, as the forecast has promised.
void Scheduler::make_room(const Sequence& sequence) {
  const size_t pages =
      most_pages(sequence, (pages_to_find(sequence) - sequence.ready_pages()) * page_tokens_);
  const uint64_t needed = pages * ladder_.least_page_bytes(sequence);
  while (pool_->available_bytes() < needed && drop_in_use()) {
  }
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

std::vector<PageRef> Scheduler::device_hits(Sequence& sequence) {
  if (archive_) return {};
  const size_t limit = pages_to_find(sequence);
  std::vector<PageRef> hits;
  // Under a window pages may be missing that no row after the hits sees.
  size_t usable = 0, complete_from = 0;
  while (hits.size() < limit) {
    extend_identities(sequence, hits.size() + 1, page_tokens_);
    const std::span tokens = std::span(sequence.tokens).subspan(hits.size() * page_tokens_, page_tokens_);
    auto page = pool_->find(sequence.identities[hits.size()], tokens);
    if (!page && sequence.window == 0) break;
    hits.push_back(page ? std::move(*page) : PageRef());
    if (!page) complete_from = hits.size();
    if (complete_from <= sequence.first_seen_page(hits.size() * page_tokens_)) usable = hits.size();
  }
  hits.resize(usable);
  std::fill_n(hits.begin(), sequence.first_seen_page(usable * page_tokens_), PageRef());
  return hits;
}

// Most pages that a sequence of so many tokens holds at a time: under a window those inside it, and those
// that a step completes.
size_t Scheduler::most_pages(const Sequence& sequence, size_t tokens) const {
  const size_t all = tokens / page_tokens_;
  if (sequence.window == 0) return all;
  return std::min(all, pages_of_window(sequence.window, options_.step_tokens, page_tokens_));
}

// The first page that it would compute is one that a running sequence is about to publish.
bool Scheduler::is_being_computed(Sequence& sequence) {
  const size_t page = sequence.pages.size();
  if (archive_ || sequence.ready_pages() < page || page >= pages_to_find(sequence)) return false;
  extend_identities(sequence, page + 1, page_tokens_);
  const int end = static_cast<int>(page + 1) * page_tokens_;
  return std::ranges::any_of(running_, [&](Sequence* other) {
    const bool publishes =
        other->computed < end && end <= static_cast<int>(other->tokens.size()) && end <= other->tainted_from;
    if (!publishes) return false;
    extend_identities(*other, page + 1, page_tokens_);
    return other->identities[page] == sequence.identities[page];
  });
}

// The candidate holds its hits. `idle_before`: free and evictable bytes before they were referenced.
bool Scheduler::forecast_fits(Sequence& candidate, uint64_t idle_before) {
  if (ladder_.drops_levels()) return forecast_fits_coarse(candidate);
  const kvstore::Ledger now = pool_->ledger();
  const uint64_t idle = now.free + now.evictable;
  uint64_t needed = missing_bytes(candidate);
  for (size_t i = 0; i < candidate.pages.size(); ++i)
    if (candidate.pages[i]) needed -= pool_->page_bytes(i == 0) + kernels::kPageHeaderBytes;
  needed += idle_before - idle;  // hits that nobody else uses
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->state != Sequence::State::kWaiting) needed += missing_bytes(*sequence);
  }
  return needed <= idle_before;
}

// Everybody at the fewest levels that it can read. Above that: pages that were just completed, which have all
// levels until the next step, and a started superblock of every size.
bool Scheduler::forecast_fits_coarse(Sequence& candidate) {
  const kvstore::PageMemory& memory = pool_->memory();
  const kernels::PageLayout& layout = memory.layout();
  std::vector<Sequence*> sequences{&candidate};
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->state != Sequence::State::kWaiting) sequences.push_back(sequence.get());
  }
  uint64_t needed = (layout.num_slabs() + 1) * memory.superblock_bytes();
  needed += (kWholePages + sequences.size() / kSequencesOfAWholePage) * pool_->page_bytes(false);
  for (const Sequence* sequence : sequences) {
    needed += missing_pages(*sequence) * ladder_.least_page_bytes(*sequence);
    if (!sequence->tail) needed += layout.tail_bytes + layout.slab_bytes[layout.sink_slab()];
  }
  const kvstore::Ledger now = pool_->ledger();
  if (needed <= now.free + now.evictable) return true;
  if (!ladder_.marked()) ladder_.mark(sequences);
  return needed <= now.free + now.evictable + ladder_.droppable_bytes();
}

// Generated tokens that the forecast counts: those that are there and one page or block more, or `expected`
// (fewer if the sequence must end before).
int Scheduler::forecast_tokens(const Sequence& sequence, int expected) const {
  const int next = sequence.generated() + (archive_ ? archive_->block_tokens : page_tokens_);
  return std::min(std::max(next, expected), sequence.sampling.max_tokens);
}

// That it still takes, or that it cannot read as they are. When all are at their fewest levels nothing is
// left to give but whole sequences, and pages computed on coarse ones are lost with them: so everybody is
// expected to use as much of its max_tokens as others did, all of them until one has ended.
size_t Scheduler::missing_pages(const Sequence& sequence) const {
  const double expected = std::ceil(answer_share_.value_or(1) * sequence.sampling.max_tokens);
  const int answer = forecast_tokens(sequence, static_cast<int>(expected));
  const size_t all = most_pages(sequence, sequence.prompt_tokens + answer);
  return all - std::min({all, sequence.ready_pages(), sequence.held_pages()});
}

// What a sequence still takes to hold what the forecast knows of.
uint64_t Scheduler::missing_bytes(const Sequence& sequence) const {
  const kvstore::PageMemory& memory = pool_->memory();
  const int further = forecast_tokens(sequence);
  const uint64_t whole =
      sequence.prompt_archived ? memory.bytes(archive_->most_after(sequence.prompt_tokens, further))
      : sequence.window > 0    ? memory.bytes({most_pages(sequence, sequence.prompt_tokens + further), {}})
                               : memory.peak_bytes(sequence.prompt_tokens, further);
  const uint64_t held = sequence.tail ? memory.bytes({sequence.held_pages(), sequence.archive.pages()}) : 0;
  return whole - std::min(whole, held);
}

void Scheduler::extend_identities(Sequence& sequence, size_t pages, int page_tokens) {
  while (sequence.identities.size() < pages) {
    const size_t page = sequence.identities.size();
    const Hash128& parent = page == 0 ? sequence.root : sequence.identities.back();
    const std::span tokens = std::span(sequence.tokens).subspan(page * page_tokens, page_tokens);
    sequence.identities.push_back(kvstore::chain_hash(parent, tokens));
  }
}

void Scheduler::restored(Sequence& sequence) {
  LOWKEY_CHECK(sequence.state == Sequence::State::kRestoring, "sequence {}", sequence.id);
  --restoring_;
  sequence.state = Sequence::State::kRunning;
  insert_in_order(running_, &sequence);
}

void Scheduler::remove(Sequence& sequence) {
  forget(sequence);
  if (sequence.generated() > 0) {
    const double share = static_cast<double>(sequence.generated()) / sequence.sampling.max_tokens;
    const double before = answer_share_.value_or(share);
    answer_share_ = before + kAnswerWeight * (share - before);
  }
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
