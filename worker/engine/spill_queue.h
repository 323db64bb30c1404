// Published pages that a store should get a copy of. Leader only, step thread only.
//
// It holds no references: a page that is evicted before its turn is skipped. Pages believed stored are not
// written again until a restore misses them.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_set>
#include <vector>

#include "kvstore/page/page_pool.h"

namespace lowkey::worker {

struct PendingSpill {
  kvstore::PageId page = 0;
  Hash128 identity;
  uint64_t first_token = 0;
};

class SpillQueue {
 public:
  // `max_pending`: pages waiting for a step; the oldest give way. `max_stored`: identities remembered as
  // stored.
  SpillQueue(size_t max_pending, size_t max_stored) : max_pending_(max_pending), max_stored_(max_stored) {}

  void offer(const PendingSpill& page);
  bool empty() const { return pending_.empty(); }
  size_t pending() const { return pending_.size(); }
  std::vector<PendingSpill> take(size_t count);
  void mark_stored(const Hash128& identity);
  bool forget_stored(const Hash128& identity) { return stored_.erase(identity) > 0; }

 private:
  size_t max_pending_, max_stored_;
  std::deque<PendingSpill> pending_;
  std::unordered_set<Hash128> stored_;
  std::deque<Hash128> stored_order_;  // oldest first; may name forgotten ones
};

}  // namespace lowkey::worker
