// What a replica gives up when memory for pages runs short, in this order:
//  1. idle pages lose top levels, least recently used first          } in every allocation of the PagePool
//  2. idle pages go: those that a store has, then the others         }
//  3. pages in use lose top levels, as far as every sequence that reads them allows, coldest first
//  4. the youngest sequence gives way and keeps what is published (Scheduler)
// With --pressure preempt there are 2 and 4 alone.
//
// A page in use is the colder the farther it lies behind the end of the sequence that is nearest to it. Slabs
// of one level only make room for others once a superblock of them is free, so a superblock's worth is given
// at a time, where possible one that becomes free.
//
// Marks are what it knows of the pages in use: whoever changes tokens, holders or levels other than through
// drop_in_use() forgets them, and many drops in a row share one look at all pages.
//
// Thread rule: the step thread, between steps: the next plan tells the ranks which levels are gone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvstore/page/page_pool.h"
#include "worker/engine/sequence.h"

namespace lowkey::worker {

class PressureLadder {
 public:
  using Holders = std::span<Sequence* const>;  // all sequences that hold pages

  // `drops_levels` false: 2 and 4 alone.
  PressureLadder(kvstore::PagePool& pool, bool drops_levels) : pool_(&pool), drops_levels_(drops_levels) {}

  bool drops_levels() const { return drops_levels_; }
  void mark(Holders holders);
  void forget_marks() { is_marked_ = false; }
  bool marked() const { return is_marked_; }
  // Step 3, once: about a superblock. False: there is nothing left to give. REQUIRES: marked()
  bool drop_in_use();
  // Bytes that step 3 could give in all. REQUIRES: marked()
  uint64_t droppable_bytes() const;
  // Least bytes of a page that a sequence can read, header included.
  uint64_t least_page_bytes(const Sequence& sequence) const;

 private:
  // A complete page in use, as its readers see it.
  struct Mark {
    uint64_t round = 0;  // of mark(); older ones are void
    int floor = 0;       // levels that all readers need
    int distance = 0;    // pages to the end of the nearest reader
  };
  // Pages that would lose slabs of one superblock.
  struct Group {
    int level = 0;  // the slabs are of
    uint64_t distance = 0;
    std::vector<kvstore::PageId> pages;
  };
  bool can_drop(kvstore::PageId page) const {
    return pool_->can_drop_level(page) && pool_->levels(page) > marks_[page].floor;
  }
  void group(kvstore::PageId page);
  bool better(const Group& a, const Group& b) const;

  kvstore::PagePool* pool_;
  bool drops_levels_;
  bool is_marked_ = false;
  uint64_t round_ = 0;
  std::vector<Mark> marks_;              // by page
  std::vector<kvstore::PageId> marked_;  // in this round; may have nothing left to give
  std::vector<Group> groups_;            // by superblock
  std::vector<uint32_t> grouped_;        // whose groups are not empty
};

}  // namespace lowkey::worker
