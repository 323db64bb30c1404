#include "worker/engine/spill_queue.h"

namespace lowkey::worker {

void SpillQueue::offer(const PendingSpill& page) {
  if (stored_.contains(page.identity)) return;
  if (pending_.size() >= max_pending_) {
    forget_stored(pending_.front().identity);
    pending_.pop_front();
  }
  pending_.push_back(page);
  mark_stored(page.identity);
}

std::vector<PendingSpill> SpillQueue::take(size_t count) {
  std::vector<PendingSpill> taken;
  while (taken.size() < count && !pending_.empty()) {
    taken.push_back(pending_.front());
    pending_.pop_front();
  }
  return taken;
}

void SpillQueue::mark_stored(const Hash128& identity) {
  if (!stored_.insert(identity).second) return;
  stored_order_.push_back(identity);
  while (stored_order_.size() > max_stored_) {
    stored_.erase(stored_order_.front());
    stored_order_.pop_front();
  }
}

}  // namespace lowkey::worker
