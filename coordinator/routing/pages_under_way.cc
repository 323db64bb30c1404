#include "coordinator/routing/pages_under_way.h"

#include "base/check.h"

namespace lowkey::coordinator {

void PagesUnderWay::add(int replica, std::span<const Hash128> pages) {
  if (pages.empty()) return;
  Counts& counts = replicas_[replica];
  for (const Hash128& page : pages) ++counts[page];
}

void PagesUnderWay::remove(int replica, std::span<const Hash128> pages) {
  if (pages.empty()) return;
  const auto found = replicas_.find(replica);
  LOWKEY_CHECK(found != replicas_.end(), "replica {} computes nothing", replica);
  Counts& counts = found->second;
  for (const Hash128& page : pages) {
    const auto count = counts.find(page);
    LOWKEY_CHECK(count != counts.end(), "a page that replica {} does not compute", replica);
    if (--count->second == 0) counts.erase(count);
  }
  if (counts.empty()) replicas_.erase(found);
}

const PagesUnderWay::Counts* PagesUnderWay::of(int replica) const {
  const auto found = replicas_.find(replica);
  return found == replicas_.end() ? nullptr : &found->second;
}

}  // namespace lowkey::coordinator
