// Which pages were evicted lately, and when: tells how soon an evicted page was wanted again, that is, how
// much larger a store would have to be. Bounded: the oldest are forgotten first. Not thread-safe.
#pragma once

#include <deque>
#include <optional>
#include <unordered_map>

#include "base/deadline.h"
#include "base/hash128.h"

namespace lowkey::kvstore {

class EvictedMemory {
 public:
  explicit EvictedMemory(size_t capacity) : capacity_(capacity) {}

  void evicted(const Hash128& identity, TimePoint now) {
    if (capacity_ == 0) return;
    at_[identity] = now;
    order_.emplace_back(identity, now);
    while (order_.size() > capacity_) {
      const auto [oldest, at] = order_.front();
      order_.pop_front();
      const auto known = at_.find(oldest);  // unless it came back, or was evicted once more since
      if (known != at_.end() && known->second == at) at_.erase(known);
    }
  }
  // Time since the eviction; empty when it is not remembered. Tells once.
  std::optional<Duration> wanted(const Hash128& identity, TimePoint now) {
    const auto known = at_.find(identity);
    if (known == at_.end()) return std::nullopt;
    const Duration since = now - known->second;
    at_.erase(known);
    return since;
  }
  size_t size() const { return at_.size(); }

 private:
  const size_t capacity_;
  std::unordered_map<Hash128, TimePoint> at_;
  std::deque<std::pair<Hash128, TimePoint>> order_;  // of the evictions
};

}  // namespace lowkey::kvstore
