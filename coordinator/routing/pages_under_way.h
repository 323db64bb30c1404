// Pages that replicas were sent to compute and have not published yet: they count as theirs, or requests that
// come close together would spread the same prefix over all of them. I/O thread only.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <unordered_map>

#include "base/hash128.h"

namespace lowkey::coordinator {

class PagesUnderWay {
 public:
  using Counts = std::unordered_map<Hash128, uint32_t>;  // page -> requests that compute it

  void add(int replica, std::span<const Hash128> pages);
  void remove(int replica, std::span<const Hash128> pages);  // REQUIRES: added
  // Null: none are.
  const Counts* of(int replica) const;

 private:
  std::map<int, Counts> replicas_;  // bounded by the prompts that the coordinator holds
};

}  // namespace lowkey::coordinator
