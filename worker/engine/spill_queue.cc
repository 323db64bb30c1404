#include "worker/engine/spill_queue.h"

#include <utility>

namespace lowkey::worker {

size_t SpillQueue::offer(const PendingSpill& page) {
  if (is_stored(page.identity)) return 0;
  const auto [known, is_new] = open_.try_emplace(page.identity, Open{page});
  if (!is_new) {
    known->second.page = page;  // computed again since
    return 0;
  }
  pending_.push_back(page.identity);
  size_t gave_way = 0;
  for (; pending_.size() > max_pending_; ++gave_way) {
    open_.erase(pending_.front());
    pending_.pop_front();
  }
  return gave_way;
}

std::vector<PendingSpill> SpillQueue::take(size_t count) {
  std::vector<PendingSpill> taken;
  while (taken.size() < count && !pending_.empty()) {
    taken.push_back(open_.at(pending_.front()).page);
    pending_.pop_front();
  }
  return taken;
}

void SpillQueue::ended(const Hash128& identity, bool stored) {
  const auto known = open_.find(identity);
  if (stored) {
    if (known != open_.end()) open_.erase(known);
    mark_stored(identity);
    return retry();
  }
  if (known == open_.end()) return;
  if (std::exchange(known->second.failed, true)) {
    open_.erase(known);
    return;
  }
  failed_.push_back(identity);
  if (failed_.size() <= max_pending_) return;
  open_.erase(failed_.front());
  failed_.pop_front();
}

void SpillQueue::retry() {
  pending_.insert(pending_.end(), failed_.begin(), failed_.end());
  failed_.clear();
}

void SpillQueue::stores_changed() {
  stored_.clear();
  stored_order_.clear();
  for (auto& [identity, open] : open_) open.failed = false;
  retry();
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
