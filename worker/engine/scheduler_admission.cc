// Who starts, and with which pages: the scheduler's part between the queue and the running sequences.
#include <algorithm>

#include "kvstore/page/page_identity.h"
#include "worker/engine/scheduler.h"

namespace lowkey::worker {

using kvstore::PageRef;

// Pages that could be found at all: the last token is always computed, its logits are wanted.
size_t Scheduler::pages_to_find(const Sequence& sequence) const {
  if (sequence.scores_prompt() || sequence.runs_alone) return 0;
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

void Scheduler::admit(Schedule* plan, int budget) {
  if (std::ranges::any_of(running_, &Sequence::runs_alone)) return;
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
        if (preempted_ || sequence.runs_alone) return;
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
  const bool first = running() == 0;
  const bool fits = forecast_fits(sequence, before.free + before.evictable) || first;
  if (!fits) return give_up(Admission::kNoRoom);
  if (!hold_memory(sequence)) {
    const size_t held = sequence.held_pages();
    const bool in_the_way = first && held > 0 && pool_->used_pages() == held;  // its own hits
    give_up(Admission::kNoRoom);
    if (!in_the_way) return Admission::kNoRoom;
    sequence.runs_alone = true;
    pool_->evict_all();
    return try_start(sequence);
  }
  const bool fetches = fetch_prefix_ && !sequence.scores_prompt() && !sequence.runs_alone;
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
      forecast_.most_pages(sequence, (pages_to_find(sequence) - sequence.ready_pages()) * page_tokens_);
  const uint64_t needed = pages * ladder_.least_page_bytes(sequence);
  while (pool_->available_bytes() < needed && drop_in_use()) {
  }
}

// The candidate holds its hits. `idle_before`: free and evictable bytes before they were referenced.
bool Scheduler::forecast_fits(Sequence& candidate, uint64_t idle_before) {
  std::vector<Sequence*> started;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->state != Sequence::State::kWaiting) started.push_back(sequence.get());
  }
  if (ladder_.drops_levels() && !archive_) return forecast_.fits_coarse(candidate, started, ladder_);
  return forecast_.fits(candidate, started, idle_before);
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

// Behind a gap in what was found or restored at its start: takes the pages that come next and are there, and
// returns how many of `wanted` tokens are to be computed up to the next such page. Coarse ones are computed,
// as nobody has asked for them.
int Scheduler::take_found(Sequence& sequence, int wanted) {
  const size_t limit = pages_to_find(sequence);
  if (archive_ || sequence.window > 0) return wanted;
  const auto is_there = [&](size_t page) {
    extend_identities(sequence, page + 1, page_tokens_);
    return pool_->is_whole(sequence.identities[page]);
  };
  const auto begins_page = [&] {  // with nothing in the tail, and no page reserved
    return static_cast<size_t>(sequence.computed) == sequence.pages.size() * page_tokens_;
  };
  while (begins_page() && sequence.pages.size() < limit && is_there(sequence.pages.size())) {
    auto page = pool_->find(sequence.identities[sequence.pages.size()],
                            std::span(sequence.tokens).subspan(sequence.computed, page_tokens_));
    if (!page) break;
    const size_t index = sequence.pages.size();
    const char source = index < sequence.sources.size() ? sequence.sources[index] : '\0';
    sequence.pages.push_back(std::move(*page));
    sequence.computed += page_tokens_;
    if (sequence.admissions == 1 && sequence.computed <= sequence.prompt_tokens)
      sequence.report.found(source, page_tokens_);
    ladder_.forget_marks();
  }
  wanted = std::min(wanted, sequence.remaining());
  for (size_t page = sequence.computed / page_tokens_ + 1; page < limit; ++page) {
    const int before = static_cast<int>(page) * page_tokens_ - sequence.computed;
    if (before >= wanted) break;
    if (is_there(page)) return before;
  }
  return wanted;
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

void Scheduler::extend_identities(Sequence& sequence, size_t pages, int page_tokens) {
  while (sequence.identities.size() < pages) {
    const size_t page = sequence.identities.size();
    const Hash128& parent = page == 0 ? sequence.root : sequence.identities.back();
    const std::span tokens = std::span(sequence.tokens).subspan(page * page_tokens, page_tokens);
    sequence.identities.push_back(kvstore::chain_hash(parent, tokens));
  }
}

}  // namespace lowkey::worker
