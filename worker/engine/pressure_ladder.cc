#include "worker/engine/pressure_ladder.h"

#include <algorithm>
#include <tuple>

namespace lowkey::worker {

using kvstore::PageId;
using kvstore::SlabPool;

// Pages that are still to be completed keep all their slabs: they are written whole.
void PressureLadder::mark(Holders holders) {
  marks_.resize(pool_->memory().max_pages());
  marked_.clear();
  ++round_;
  const int page_tokens = pool_->memory().layout().page_tokens;
  for (const Sequence* sequence : holders) {
    const int complete =
        std::min(static_cast<int>(sequence->pages.size()), sequence->next_slot() / page_tokens);
    for (int i = 0; i < complete; ++i) {
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
  std::erase_if(marked_, [&](PageId page) {
    return !pool_->can_drop_level(page) || pool_->levels(page) <= marks_[page].floor;
  });
}

uint64_t PressureLadder::droppable_bytes(Holders holders) {
  if (!drops_levels_) return 0;
  mark(holders);
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

void PressureLadder::group() {
  kvstore::PageMemory& memory = pool_->memory();
  groups_.resize(memory.num_superblocks());
  grouped_.clear();
  for (const PageId page : marked_) {
    const int level = pool_->levels(page) - 1;
    const uint32_t superblock = memory.slabs(level).superblock_of(pool_->slab(page, level));
    Group& group = groups_[superblock];
    if (group.round != round_) {
      group.round = round_;
      group.level = level;
      group.distance = 0;
      group.pages.clear();
      grouped_.push_back(superblock);
    }
    group.distance += marks_[page].distance;
    group.pages.push_back(page);
  }
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

bool PressureLadder::drop_in_use(Holders holders) {
  if (!drops_levels_) return false;
  mark(holders);
  if (marked_.empty()) return false;
  group();
  const uint32_t best = *std::min_element(grouped_.begin(), grouped_.end(), [&](uint32_t a, uint32_t b) {
    return better(groups_[a], groups_[b]);
  });
  for (const PageId page : groups_[best].pages) pool_->drop_level(page);
  return true;
}

}  // namespace lowkey::worker
