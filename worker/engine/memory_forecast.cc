#include "worker/engine/memory_forecast.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace lowkey::worker {

namespace {

// Pages at all levels beside coarse ones: of prefills, which take what is there, and of decodes, of which one
// in page_tokens completes a page in a step.
constexpr size_t kWholePages = 2, kSequencesOfAWholePage = 8;

constexpr double kAnswerWeight = 1.0 / 16;  // of the last answer in the mean share

// Steps in which a token that had to be computed at the start is earned.
constexpr int kStepsToEarnAToken = 2;

}  // namespace

struct MemoryForecast::Growth {
  const Sequence* sequence;
  int left;             // steps to its end
  int64_t page_bytes;   // of one at its fewest levels
  int64_t held;         // pages that it can go on with
  int64_t start_bytes;  // that it still takes besides pages
  int64_t own_bytes;    // that nobody else holds: given back at its end
};

MemoryForecast::MemoryForecast(kvstore::PagePool& pool, int step_tokens)
    : pool_(&pool),
      archive_(pool.memory().archive()),
      step_tokens_(step_tokens),
      page_tokens_(pool.memory().layout().page_tokens) {}

size_t MemoryForecast::most_pages(const Sequence& sequence, size_t tokens) const {
  const size_t all = tokens / page_tokens_;
  if (sequence.window == 0) return all;
  return std::min(all, pages_of_window(sequence.window, step_tokens_, page_tokens_));
}

bool MemoryForecast::fits(const Sequence& candidate, Holders holders, uint64_t idle_before) const {
  const kvstore::Ledger now = pool_->ledger();
  const uint64_t idle = now.free + now.evictable;
  uint64_t needed = missing_bytes(candidate);
  for (size_t i = 0; i < candidate.pages.size(); ++i)
    if (candidate.pages[i]) needed -= pool_->page_bytes(i == 0) + kernels::kPageHeaderBytes;
  needed += idle_before - idle;  // hits that nobody else uses
  for (const Sequence* sequence : holders) needed += missing_bytes(*sequence);
  return needed <= idle_before;
}

// What a sequence still takes to hold its known tokens and one page or block more.
uint64_t MemoryForecast::missing_bytes(const Sequence& sequence) const {
  const kvstore::PageMemory& memory = pool_->memory();
  const int further = std::min(sequence.generated() + (archive_ ? archive_->block_tokens : page_tokens_),
                               sequence.sampling.max_tokens);
  const uint64_t whole =
      sequence.prompt_archived ? memory.bytes(archive_->most_after(sequence.prompt_tokens, further))
      : sequence.window > 0    ? memory.bytes({most_pages(sequence, sequence.prompt_tokens + further), {}})
                               : memory.peak_bytes(sequence.prompt_tokens, further);
  const uint64_t held = sequence.tail ? memory.bytes({sequence.held_pages(), sequence.archive.pages()}) : 0;
  return whole - std::min(whole, held);
}

// Above the fewest levels: pages that were just completed, which have all of them until the next step, and a
// started superblock of every size.
bool MemoryForecast::fits_coarse(Sequence& candidate, Holders holders, PressureLadder& ladder) const {
  std::vector<Sequence*> sequences(holders.begin(), holders.end());
  sequences.push_back(&candidate);
  std::vector<Growth> growths;
  for (const Sequence* sequence : sequences) growths.push_back(growth_of(*sequence, ladder));
  const kvstore::PageMemory& memory = pool_->memory();
  const uint64_t reserve =
      (memory.layout().num_slabs() + 1) * memory.superblock_bytes() +
      (kWholePages + sequences.size() / kSequencesOfAWholePage) * pool_->page_bytes(false);

  const int to_compute = static_cast<int>(candidate.tokens.size() - candidate.ready_pages() * page_tokens_);
  const int ahead = std::min(std::max(page_tokens_, kStepsToEarnAToken * to_compute), growths.back().left);
  int64_t needed = needed_after(growths, ahead);
  for (const Growth& growth : growths) {  // the most is needed right before somebody ends
    if (growth.left < ahead) needed = std::max(needed, needed_after(growths, growth.left));
  }
  needed += static_cast<int64_t>(reserve);
  const kvstore::Ledger now = pool_->ledger();
  const auto idle = static_cast<int64_t>(now.free + now.evictable);
  if (needed <= idle) return true;
  if (!ladder.marked()) ladder.mark(sequences);
  return needed <= idle + static_cast<int64_t>(ladder.droppable_bytes());
}

// Answer tokens that it is expected to come to: a page more than are there, at least.
int MemoryForecast::expected_answer(const Sequence& sequence) const {
  const int expected = static_cast<int>(std::ceil(answer_share_.value_or(1) * sequence.sampling.max_tokens));
  return std::min(std::max(expected, sequence.generated() + page_tokens_), sequence.sampling.max_tokens);
}

MemoryForecast::Growth MemoryForecast::growth_of(const Sequence& sequence,
                                                 const PressureLadder& ladder) const {
  const kernels::PageLayout& layout = pool_->memory().layout();
  const bool restoring = sequence.state == Sequence::State::kRestoring;  // into pages that are there
  const size_t held =
      restoring ? sequence.held_pages() : std::min(sequence.ready_pages(), sequence.held_pages());
  Growth growth{.sequence = &sequence,
                .left = expected_answer(sequence) - sequence.generated(),
                .page_bytes = static_cast<int64_t>(ladder.least_page_bytes(sequence)),
                .held = static_cast<int64_t>(held),
                .start_bytes = 0,
                .own_bytes = 0};
  const auto start = static_cast<int64_t>(layout.tail_bytes + layout.slab_bytes[layout.sink_slab()]);
  (sequence.tail ? growth.own_bytes : growth.start_bytes) = start;
  for (const kvstore::PageRef& page : sequence.pages) {
    if (page && !pool_->is_shared(page.id())) growth.own_bytes += growth.page_bytes;
  }
  return growth;
}

// Bytes beyond what is held now, so many steps from now.
int64_t MemoryForecast::needed_after(std::span<const Growth> growths, int steps) const {
  int64_t needed = 0;
  for (const Growth& growth : growths) {
    if (growth.left < steps) {
      needed -= growth.own_bytes;
      continue;
    }
    const auto pages =
        static_cast<int64_t>(most_pages(*growth.sequence, growth.sequence->tokens.size() + steps));
    needed += growth.start_bytes + std::max<int64_t>(0, pages - growth.held) * growth.page_bytes;
  }
  return needed;
}

void MemoryForecast::ended(const Sequence& sequence) {
  if (sequence.generated() == 0) return;
  const double share = static_cast<double>(sequence.generated()) / sequence.sampling.max_tokens;
  const double before = answer_share_.value_or(share);
  answer_share_ = before + kAnswerWeight * (share - before);
}

}  // namespace lowkey::worker
