// Which pages have become findable on this replica and which have gone, for the coordinator's index: gathered
// by step, each identity once with what it came to. Bounded: when more changes than fit, everything is sent
// anew. Step thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "base/hash128.h"

namespace lowkey::wire {
class PrefixEvents;
}

namespace lowkey::worker {

class PrefixEventQueue {
 public:
  explicit PrefixEventQueue(size_t max_pending) : max_pending_(max_pending) {}

  void changed(const Hash128& identity, bool added);
  void resync();  // everything is sent anew

  bool empty() const { return pending_.empty() && !reset_; }
  // Takes what is pending as messages of bounded size, in order. `all`: every findable identity, asked when
  // it must be sent anew.
  void take(const std::function<std::vector<Hash128>()>& all,
            const std::function<void(const wire::PrefixEvents&)>& send);

 private:
  size_t max_pending_;
  std::unordered_map<Hash128, bool> pending_;  // added or gone
  bool reset_ = false;
  uint64_t sequence_ = 0;
};

}  // namespace lowkey::worker
