// Pages on their way to the stores: which of them, and what became of those.
#include "worker/engine/engine.h"

namespace lowkey::worker {

using monitoring::Metric;

namespace {

constexpr size_t kMostOfferedAgain = 1024;  // in one step

}  // namespace

void Engine::offer_spill(const PendingSpill& page) {
  if (!executor_.pages().can_spill()) return;  // when a store comes it is offered with all others
  if (spills_.is_stored(page.identity)) return pool_.set_stored(page.identity, true);
  count_spills("dropped_queue", spills_.offer(page));
}

void Engine::plan_spills(Step* step) {
  if (!executor_.pages().can_spill()) return;
  if (spills_.empty()) offer_unstored();
  size_t evicted = 0;
  for (const PendingSpill& spill : spills_.take(executor_.pages().spill_room())) {
    if (auto page = pool_.find(spill.page, spill.identity)) {
      step->spills.push_back(spill);
      step->pinned.push_back(std::move(*page));
    } else {
      spills_.skip(spill.identity);
      ++evicted;
    }
  }
  count_spills("evicted", evicted);
}

// After the stores have changed: page by page what is here, once.
void Engine::offer_unstored() {
  for (const auto& page : pool_.unstored(&next_unstored_, kMostOfferedAgain))
    offer_spill({page.page, page.identity, page.first_token});
}

// A page is stored when a store says so, and for eviction no sooner.
void Engine::on_spilled(const std::vector<SpilledPage>& pages) {
  for (const SpilledPage& page : pages) {
    pool_.set_stored(page.identity, page.held);
    spills_.ended(page.identity, page.held);
  }
}

// What was stored may be gone with its store, or belong to another one now.
void Engine::follow_stores(uint64_t stores) {
  if (std::exchange(stores_, stores) == stores) return;
  spills_.stores_changed();
  pool_.forget_stored();
  next_unstored_ = 0;
}

void Engine::count_spills(const char* outcome, size_t pages) {
  if (pages > 0) metrics_.add(Metric::kSpillOutcomes, static_cast<double>(pages), {{"outcome", outcome}});
}

}  // namespace lowkey::worker
