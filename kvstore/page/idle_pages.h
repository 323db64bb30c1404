// Evictable pages in the order in which they give their memory: those of which a store has a copy before the
// others, least recently used first. Knows ages, not what pages hold. Thread rule: PagePool's.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "kvstore/page/page_ref.h"

namespace lowkey::kvstore {

class IdlePages {
 public:
  explicit IdlePages(size_t max_pages) : nodes_(max_pages) {}

  void add(PageId id, bool stored);  // the most recently used one
  void remove(PageId id);
  uint64_t count() const { return count_; }

  // A store has got a copy, or lost it: the page keeps its age.
  void set_stored(PageId id, bool stored);
  void forget_stored();  // of all pages

  // The next to go.
  std::optional<PageId> first() const;
  // The least recently used one with levels to drop, stored or not. `droppable(id)` once false stays so until
  // the page is added again.
  template <class Droppable>
  std::optional<PageId> first_droppable(const Droppable& droppable) {
    for (List& list : lists_)
      while (list.droppable != kNone && !droppable(list.droppable))
        list.droppable = nodes_[list.droppable].newer;
    return older_of(lists_[0].droppable, lists_[1].droppable);
  }

 private:
  static constexpr PageId kNone = kNoSlab;

  struct Node {
    PageId older = kNone, newer = kNone;
    uint64_t since = 0;  // order in which they came
    bool stored = false;
  };
  struct List {
    PageId oldest = kNone, newest = kNone;
    PageId droppable = kNone;  // no older one has levels to drop; may have none itself
  };

  List& list_of(const Node& node) { return lists_[node.stored ? 0 : 1]; }
  void link(PageId id);
  void unlink(PageId id);
  std::optional<PageId> older_of(PageId a, PageId b) const;

  std::vector<Node> nodes_;    // by PageId
  std::array<List, 2> lists_;  // pages that a store has, others
  uint64_t clock_ = 0;
  uint64_t count_ = 0;
};

}  // namespace lowkey::kvstore
