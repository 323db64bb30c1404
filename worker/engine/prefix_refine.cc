// The pages of running sequences get finer: upper levels in batches, level by level.
#include <algorithm>

#include "base/log.h"
#include "worker/engine/prefix_restores.h"

namespace lowkey::worker {

using kvstore::PageRef;

void PrefixRestores::start_refining(const Sequence& sequence) {
  if (lossy_) return;
  Refinement refinement{.sequence_id = sequence.id};
  for (size_t rank = 0; rank < sequence.pages.size(); ++rank) {
    const size_t i = page_of_rank(rank, sequence.pages.size());
    const PageRef& page = sequence.pages[i];
    if (page && page.levels() > 0 && page.levels() < num_levels_ && !page.lossy())
      refinement.items.push_back({i, page.levels()});
  }
  if (!refinement.items.empty()) refining_.push_back(std::move(refinement));
}

void PrefixRestores::refine() {
  if (commands_.late() > 0) return;
  for (size_t i = 0; i < refining_.size() && commands_.refining() < options_.max_refining;) {
    Refinement& refinement = refining_[i];
    Sequence* sequence = hooks_.find(refinement.sequence_id);
    const bool runs = sequence != nullptr && sequence->state == Sequence::State::kRunning;
    if (runs) look_again(*sequence, &refinement);
    if (runs && !refinement.items.empty()) {
      if (!next_batch(*sequence, &refinement)) ++i;  // what it wants is on its way
      continue;
    }
    if (runs && !refinement.reason.empty())
      sequence->report.note("upper levels were not restored: " + refinement.reason);
    refining_.erase(refining_.begin() + i);
  }
}

// What has become finer meanwhile goes on from there. What was asked for in vain stays, and so does what has
// lost a level under pressure: it would lose it again.
void PrefixRestores::look_again(const Sequence& sequence, Refinement* refinement) const {
  std::erase_if(refinement->items, [&](Refinement::Item& item) {
    if (item.index >= sequence.pages.size()) return true;
    const PageRef& page = sequence.pages[item.index];
    if (!page) return true;  // behind the window
    const int levels = page.levels();
    if (levels >= num_levels_ || levels < item.level || page.lossy()) return true;
    if (levels == item.level) return item.tried && !commands_.busy(page.id());
    item = {item.index, levels};
    return false;
  });
}

// What a step can take in: smaller, and the link would stand still; larger, and what matters most would wait
// for what does not.
uint64_t PrefixRestores::batch_bytes() const {
  const MeasuredRates rates = cost_->rates();
  const double step = rates.restore_bytes_per_second * rates.last_step_seconds;
  if (step <= 0) return options_.refining_bytes / 4;
  return static_cast<uint64_t>(std::min(step, static_cast<double>(options_.refining_bytes)));
}

bool PrefixRestores::next_batch(Sequence& sequence, Refinement* refinement) {
  const auto idle = [&](const Refinement::Item& item) {
    return !item.tried && !commands_.busy(sequence.pages[item.index].id());
  };
  int level = num_levels_;
  for (const Refinement::Item& item : refinement->items) {
    if (idle(item)) level = std::min(level, item.level);
  }
  if (level == num_levels_) return false;
  const uint64_t slab_bytes = pool_->memory().layout().slab_bytes[level];
  const size_t most = std::clamp<uint64_t>(batch_bytes() / slab_bytes, 1, kMaxPages);
  std::vector<size_t> pages;
  for (Refinement::Item& item : refinement->items) {
    if (item.level != level || !idle(item)) continue;
    if (pages.size() == most || is_short(slab_bytes) || !pool_->grow(sequence.pages[item.index], level + 1))
      break;
    item.tried = true;
    pages.push_back(item.index);
  }
  if (pages.empty()) {
    refinement->reason = "no memory for them";
    refinement->items.clear();
  } else {
    send(sequence, pages, {.from = level, .to = level + 1, .gaps = true});
  }
  return true;
}

}  // namespace lowkey::worker
