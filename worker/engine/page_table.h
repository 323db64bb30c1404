// What the ranks' tables hold of one sequence's pages, and at how many levels steps read them. Leader only,
// step thread only.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kvstore/page/page_pool.h"

namespace lowkey::wire {
class PlannedSequence;
}

namespace lowkey::worker {

class PageTable {
 public:
  // Names in `planned` what the ranks do not know yet: pages behind the known ones, and known pages whose
  // slabs or levels have changed. `level_changes`: PagePool::level_changes(), without which every page would
  // have to be looked at in every step. Slabs that may not be read yet are not named.
  void plan(std::span<const kvstore::PageRef> pages, const kernels::PageLayout& layout,
            uint64_t level_changes, wire::PlannedSequence* planned);

  // Page `page` is another one now: it and what follows is sent again.
  void exchanged(size_t page);
  // No row to come reads the page: the ranks may keep what they know of it.
  void released(size_t page);
  void clear() { *this = {}; }

  // As of the last plan. Coarse: fewer than all levels, or back through a lossy format.
  size_t coarse_pages() const { return coarse_; }
  int lowest_levels() const;  // of any page; 0: there is none
  // The first `pages` pages, as far as they are read; all of them but coarse ones full, by the number of
  // levels.
  std::array<uint32_t, kernels::kMaxLevels + 1> by_levels(size_t pages, int num_levels) const;

 private:
  struct Known {
    uint32_t version = 0;
    uint8_t levels = 0;
    bool coarse = false;
    bool released = false;
  };
  void count(const Known& page, int change);
  void send(const kvstore::PageRef& page, int num_levels, Known* known);

  std::vector<Known> known_;
  std::array<uint32_t, kernels::kMaxLevels + 1> levels_{};  // [levels] coarse pages
  size_t coarse_ = 0;
  size_t released_ = 0;
  uint64_t level_changes_ = 0;
};

}  // namespace lowkey::worker
