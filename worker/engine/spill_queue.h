// Published pages that a store should get a copy of, and which of them a store has. Leader only, step thread
// only.
//
// It holds no references: a page that is evicted before its turn is skipped. A page counts as stored once a
// store has it, and is not written again until a restore misses it or the stores are others. One that could
// not be stored gets a second chance, once something else could be.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>
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
  // `max_pending`: pages waiting for a step, and as many for their second chance; the oldest give way.
  // `max_stored`: identities remembered as stored.
  SpillQueue(size_t max_pending, size_t max_stored) : max_pending_(max_pending), max_stored_(max_stored) {}

  // How many older ones gave way.
  size_t offer(const PendingSpill& page);
  bool empty() const { return pending_.empty(); }
  size_t pending() const { return pending_.size(); }
  // On their way from here on, until ended() or skip().
  std::vector<PendingSpill> take(size_t count);
  void ended(const Hash128& identity, bool stored);
  void skip(const Hash128& identity) { open_.erase(identity); }  // it was taken, and is not there any more

  bool is_stored(const Hash128& identity) const { return stored_.contains(identity); }
  void mark_stored(const Hash128& identity);
  bool forget_stored(const Hash128& identity) { return stored_.erase(identity) > 0; }
  void stores_changed();  // nothing counts as stored any more, and every page has all its chances

 private:
  struct Open {  // waiting or on its way
    PendingSpill page;
    bool failed = false;
  };
  void retry();

  size_t max_pending_, max_stored_;
  std::unordered_map<Hash128, Open> open_;
  std::deque<Hash128> pending_;
  std::deque<Hash128> failed_;  // waiting for their second chance
  std::unordered_set<Hash128> stored_;
  std::deque<Hash128> stored_order_;  // oldest first; may name forgotten ones
};

}  // namespace lowkey::worker
