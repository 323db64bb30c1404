#include "worker/engine/pressure_ladder.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace lowkey::worker {

using kvstore::PageId;
using kvstore::SlabPool;

// Pages that are still to be completed keep all their slabs: they are written whole.
void PressureLadder::mark(Holders holders) {
  is_marked_ = true;
  if (!drops_levels_) return;
  marks_.resize(pool_->memory().max_pages());
  groups_.resize(pool_->memory().num_superblocks());
  for (const uint32_t superblock : grouped_) groups_[superblock] = {};
  grouped_.clear();
  marked_.clear();
  ++round_;
  const int page_tokens = pool_->memory().layout().page_tokens;
  for (const Sequence* sequence : holders) {
    const int complete =
        std::min(static_cast<int>(sequence->pages.size()), sequence->next_slot() / page_tokens);
    for (int i = 0; i < complete; ++i) {
      if (!sequence->pages[i]) continue;
      const PageId page = sequence->pages[i].id();
      Mark& mark = marks_[page];
      if (mark.round != round_) {
        mark = {round_, sequence->min_levels, complete - i};
        marked_.push_back(page);
      } else {
        mark.floor = std::max(mark.floor, sequence->min_levels);
        mark.distance = std::min(mark.distance, complete - i);
      }
    }
  }
  std::erase_if(marked_, [&](PageId page) { return !can_drop(page); });
  for (const PageId page : marked_) group(page);
}

uint64_t PressureLadder::droppable_bytes() const {
  LOWKEY_CHECK(is_marked_, "{} pages of an earlier round", marked_.size());
  uint64_t bytes = 0;
  for (const PageId page : marked_) {
    for (int level = marks_[page].floor; level < pool_->levels(page); ++level)
      bytes += pool_->memory().layout().slab_bytes[level];
  }
  return bytes;
}

uint64_t PressureLadder::least_page_bytes(const Sequence& sequence) const {
  return kernels::kPageHeaderBytes + pool_->page_bytes(false, drops_levels_ ? sequence.min_levels : 0);
}

// With those that would lose slabs of the same superblock.
void PressureLadder::group(PageId page) {
  const int level = pool_->levels(page) - 1;
  const uint32_t superblock = pool_->memory().slabs(level).superblock_of(pool_->slab(page, level));
  Group& group = groups_[superblock];
  if (group.pages.empty()) grouped_.push_back(superblock);
  group.level = level;
  group.distance += marks_[page].distance;
  group.pages.push_back(page);
}

bool PressureLadder::better(const Group& a, const Group& b) const {
  const auto rank = [&](const Group& group) {
    const SlabPool& slabs = pool_->memory().slabs(group.level);
    const uint32_t superblock = static_cast<uint32_t>(&group - groups_.data());
    return std::tuple(slabs.used_in(superblock) == group.pages.size(), group.level,
                      group.distance / group.pages.size());
  };
  return rank(a) > rank(b);
}

bool PressureLadder::drop_in_use() {
  LOWKEY_CHECK(is_marked_, "{} pages of an earlier round", marked_.size());
  if (grouped_.empty()) return false;
  const auto best = std::min_element(grouped_.begin(), grouped_.end(),
                                     [&](uint32_t a, uint32_t b) { return better(groups_[a], groups_[b]); });
  const Group given = std::exchange(groups_[*best], {});
  *best = grouped_.back();
  grouped_.pop_back();
  for (const PageId page : given.pages) pool_->drop_level(page);
  for (const PageId page : given.pages) {
    if (can_drop(page)) group(page);
  }
  return true;
}

}  // namespace lowkey::worker
