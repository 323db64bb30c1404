#include "worker/engine/page_table.h"

#include <algorithm>

#include "transport/wire/lowkey.pb.h"

namespace lowkey::worker {

using kvstore::kNoSlab;
using kvstore::PageRef;

namespace {

// A page that is not there has none of its slabs.
template <class Slabs>
void add_slabs(const PageRef& page, int num_slabs, int num_levels, Slabs* out) {
  if (!page) {
    for (int i = 0; i < num_slabs; ++i) out->Add(kNoSlab);
    return;
  }
  const std::span<const kvstore::SlabId> slabs = page.slabs();
  for (int i = 0; i < static_cast<int>(slabs.size()); ++i)
    out->Add(i < num_levels && i >= page.levels() ? kNoSlab : slabs[i]);
}

}  // namespace

void PageTable::plan(std::span<const PageRef> pages, const kernels::PageLayout& layout,
                     uint64_t level_changes, wire::PlannedSequence* planned) {
  const int num_levels = layout.num_levels;
  const auto slabs_of = [&](size_t page) { return page == 0 ? layout.num_slabs() : num_levels; };
  LOWKEY_CHECK(known_.size() <= pages.size(), "{} pages known of {}", known_.size(), pages.size());
  if (level_changes != level_changes_) {
    for (size_t i = 0; i < known_.size(); ++i) {
      if (!pages[i] || pages[i].version() == known_[i].version) continue;
      wire::PageChange& change = *planned->add_changes();
      change.set_page(static_cast<uint32_t>(i));
      add_slabs(pages[i], slabs_of(i), num_levels, change.mutable_slabs());
      count(known_[i], -1);
      send(pages[i], num_levels, &known_[i]);
    }
    level_changes_ = level_changes;
  }
  planned->set_first_page(static_cast<uint32_t>(known_.size()));
  while (known_.size() < pages.size()) {
    const PageRef& page = pages[known_.size()];
    add_slabs(page, slabs_of(known_.size()), num_levels, planned->mutable_slabs());
    if (page) {
      send(page, num_levels, &known_.emplace_back());
    } else {
      known_.push_back({.released = true});
      ++released_;
    }
  }
}

void PageTable::send(const PageRef& page, int num_levels, Known* known) {
  const int levels = page.levels();
  *known = {page.version(), static_cast<uint8_t>(levels), levels < num_levels || page.lossy()};
  count(*known, 1);
}

void PageTable::count(const Known& page, int change) {
  if (!page.coarse) return;
  coarse_ += change;
  levels_[page.levels] += change;
}

void PageTable::exchanged(size_t page) {
  while (known_.size() > page) {
    count(known_.back(), -1);
    released_ -= known_.back().released;
    known_.pop_back();
  }
}

void PageTable::released(size_t page) {
  if (page >= known_.size() || known_[page].released) return;
  count(known_[page], -1);
  known_[page] = {.released = true};
  ++released_;
}

int PageTable::lowest_levels() const {
  for (int levels = 0; levels <= kernels::kMaxLevels; ++levels) {
    if (levels_[levels] > 0) return levels;
  }
  return known_.empty() ? 0 : known_.back().levels;
}

std::array<uint32_t, kernels::kMaxLevels + 1> PageTable::by_levels(size_t pages, int num_levels) const {
  std::array<uint32_t, kernels::kMaxLevels + 1> all = levels_;
  all[num_levels] += static_cast<uint32_t>(pages - std::min(pages, coarse_ + released_));
  return all;
}

}  // namespace lowkey::worker
