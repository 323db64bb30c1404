// Who reads which page of a store: lookups, leases and how they end.
#include <algorithm>

#include "kvstore/service/store_index.h"

namespace lowkey::kvstore {

std::vector<StoreIndex::Found> StoreIndex::lookup(Owner owner, std::span<const Hash128> identities,
                                                  SlabMask wanted, bool gaps, TimePoint now) {
  expire(now);
  std::vector<Found> found;
  std::vector<Hash128> touched;
  for (size_t i = 0; i < identities.size(); ++i) {
    const SlabMask lacks = lacking(identities[i], wanted);
    const SlabMask there = present(identities[i]);
    if (there == 0 || (lacks != 0 && (!gaps || (wanted != 0 && (there & wanted) == 0)))) {
      if (!gaps) break;
      continue;
    }
    auto page = lease(owner, identities[i], now);
    if (!page) break;
    page->index = i;
    found.push_back(*page);
    touched.push_back(identities[i]);
  }
  touch(touched);
  return found;
}

SlabMask StoreIndex::present(const Hash128& identity) const {
  const auto known = by_identity_.find(identity);
  if (known == by_identity_.end()) return 0;
  const Page& page = pages_.at(known->second);
  return page.committed ? mask_of(page.slabs) : 0;
}

SlabMask StoreIndex::lacking(const Hash128& identity, SlabMask wanted) const {
  const auto known = by_identity_.find(identity);
  if (known == by_identity_.end() || !pages_.at(known->second).committed) return wanted == 0 ? ~0u : wanted;
  const Page& page = pages_.at(known->second);
  return (wanted == 0 ? page.known : wanted & page.known) & ~mask_of(page.slabs);
}

bool StoreIndex::being_written(const Hash128& identity) const {
  const auto known = by_identity_.find(identity);
  return known != by_identity_.end() && pages_.at(known->second).reservation != 0;
}

std::optional<Duration> StoreIndex::evicted_since(const Hash128& identity, TimePoint now) {
  return contains(identity) ? std::nullopt : evicted_.wanted(identity, now);
}

std::optional<StoreIndex::Found> StoreIndex::lease(Owner owner, const Hash128& identity, TimePoint now) {
  const auto known = by_identity_.find(identity);
  if (known == by_identity_.end() || !pages_.at(known->second).committed) return std::nullopt;
  const auto held = leases_by_owner_.find(owner);
  if (held != leases_by_owner_.end() && held->second >= options_.max_leases_per_owner) return std::nullopt;
  Page& page = pages_.at(known->second);
  pin(known->second, page);
  const uint64_t lease = next_id_++;
  const TimePoint expires = expiry(owner, options_.lease_ttl, now);
  leases_.emplace(lease, Lease{known->second, owner, expires});
  if (owner != kStoreItself) lease_expiry_.emplace(expires, lease);
  ++leases_by_owner_[owner];
  return Found{.lease = lease, .expires = expires, .header = page.header, .slabs = page.slabs};
}

void StoreIndex::touch(std::span<const Hash128> identities) {
  for (auto identity = identities.rbegin(); identity != identities.rend(); ++identity) {
    if (const auto known = by_identity_.find(*identity); known != by_identity_.end()) {
      touch_page(known->second, pages_.at(known->second));
    }
  }
}

void StoreIndex::release(Owner owner, uint64_t lease) {
  const auto found = leases_.find(lease);
  if (found != leases_.end() && found->second.owner == owner) end_lease(found);
}

void StoreIndex::release_corrupt(Owner owner, uint64_t lease) {
  const auto found = leases_.find(lease);
  if (found == leases_.end() || found->second.owner != owner) return;
  doom(pages_.at(found->second.page));
  end_lease(found);
}

void StoreIndex::doom(Page& page) {
  if (page.doomed) return;
  page.doomed = true;
  by_identity_.erase(page.identity);
  ++counters_.corrupt_pages;
  if (options_.on_change) options_.on_change(page.header, false);
}

void StoreIndex::drop_owner(Owner owner) {
  for (auto it = pending_.begin(); it != pending_.end();) {
    const auto pending = it++;  // end_pending() erases the entry
    if (pending->second.owner == owner) end_pending(pending->first);
  }
  for (auto it = leases_.begin(); it != leases_.end();) {
    const auto lease = it++;
    if (lease->second.owner == owner) end_lease(lease);
  }
}

void StoreIndex::expire(TimePoint now) {
  while (!pending_expiry_.empty() && pending_expiry_.begin()->first <= now) {
    ++counters_.expired_reservations;
    end_pending(pending_expiry_.begin()->second);
  }
  while (!lease_expiry_.empty() && lease_expiry_.begin()->first <= now) {
    ++counters_.expired_leases;
    end_lease(leases_.find(lease_expiry_.begin()->second));
  }
}

std::optional<TimePoint> StoreIndex::next_expiry() const {
  std::optional<TimePoint> next;
  if (!pending_expiry_.empty()) next = pending_expiry_.begin()->first;
  if (!lease_expiry_.empty()) {
    const TimePoint lease = lease_expiry_.begin()->first;
    next = next ? std::min(*next, lease) : lease;
  }
  return next;
}

void StoreIndex::end_lease(std::map<uint64_t, Lease>::iterator lease) {
  const Lease ended = lease->second;
  const auto held = leases_by_owner_.find(ended.owner);
  if (--held->second == 0) leases_by_owner_.erase(held);
  lease_expiry_.erase({ended.expires, lease->first});
  leases_.erase(lease);
  unpin(ended.page, pages_.at(ended.page));
}

}  // namespace lowkey::kvstore
