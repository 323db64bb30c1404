#include "kvstore/service/store_index.h"

#include <algorithm>

#include "base/check.h"

namespace lowkey::kvstore {

StoreIndex::StoreIndex(const Options& options) : options_(options), allocator_(options.capacity) {}

StoreIndex::Reservation StoreIndex::reserve(Owner owner, const Hash128& identity,
                                            std::span<const uint32_t> slab_bytes, TimePoint now) {
  LOWKEY_CHECK(!slab_bytes.empty() && slab_bytes.size() <= kernels::kMaxSlabs, "{} slabs", slab_bytes.size());
  expire(now);
  if (const auto known = by_identity_.find(identity); known != by_identity_.end()) {
    touch(known->second, pages_.at(known->second));
    return {.grant = Grant::kAlreadyPresent};
  }
  uint64_t bytes = 0, requested = 0;
  for (const uint32_t slab : slab_bytes) {
    bytes += OffsetAllocator::rounded(slab);
    requested += slab;
  }
  LOWKEY_CHECK(bytes > 0, "a page of no bytes");
  // Nothing is evicted for a page that cannot fit anyhow. Fragments between pinned slabs can still refuse it.
  if (bytes > allocator_.capacity() - allocator_.used() + evictable_) return {.grant = Grant::kFull};
  std::optional<Slabs> slabs;
  while (!(slabs = allocate(slab_bytes))) {
    if (lru_.empty()) return {.grant = Grant::kFull};
    ++counters_.evicted_pages;
    remove(lru_.begin()->second);
  }
  const uint64_t id = next_id_++;
  pages_.emplace(
      id,
      Page{.identity = identity, .slabs = *slabs, .bytes = bytes, .requested = requested, .writer = owner});
  by_identity_.emplace(identity, id);
  reservations_.emplace(id, now + options_.reservation_ttl);
  in_flight_ += bytes;
  requested_ += requested;
  return {.grant = Grant::kGranted, .id = id, .slabs = *slabs};
}

std::optional<Slabs> StoreIndex::allocate(std::span<const uint32_t> slab_bytes) {
  Slabs slabs;
  for (size_t i = 0; i < slab_bytes.size(); ++i) {
    if (slab_bytes[i] == 0) continue;
    const auto offset = allocator_.allocate(slab_bytes[i]);
    if (!offset) {
      for (const Slab& slab : slabs) {
        if (slab.bytes > 0) allocator_.free(slab.offset);
      }
      return std::nullopt;
    }
    slabs[i] = {*offset, slab_bytes[i]};
  }
  return slabs;
}

std::optional<Slabs> StoreIndex::reserved(Owner owner, uint64_t reservation) const {
  const auto page = pages_.find(reservation);
  if (page == pages_.end() || page->second.committed || page->second.writer != owner) return std::nullopt;
  return page->second.slabs;
}

bool StoreIndex::commit(Owner owner, uint64_t reservation, const kernels::PageHeader& header, TimePoint now) {
  expire(now);
  const auto found = pages_.find(reservation);
  if (found == pages_.end()) return false;
  Page& page = found->second;
  if (page.writer != owner || page.doomed || page.identity != header.identity) return false;
  if (page.committed) return true;
  reservations_.erase(reservation);
  page.committed = true;
  page.header = header;
  page.last_use = next_use_++;
  in_flight_ -= page.bytes;
  evictable_ += page.bytes;
  lru_.emplace(page.last_use, reservation);
  return true;
}

void StoreIndex::abort(Owner owner, uint64_t reservation) {
  if (reserved(owner, reservation)) remove(reservation);
}

std::vector<StoreIndex::Found> StoreIndex::lookup(Owner owner, std::span<const Hash128> identities,
                                                  TimePoint now) {
  expire(now);
  std::vector<Found> run;
  size_t& held = leases_by_owner_[owner];
  std::vector<uint64_t> ids;
  for (const Hash128& identity : identities) {
    const auto known = by_identity_.find(identity);
    if (known == by_identity_.end() || held >= options_.max_leases_per_owner) break;
    Page& page = pages_.at(known->second);
    if (!page.committed) break;
    if (page.leases++ == 0) set_pinned(known->second, page, true);
    const uint64_t lease = next_id_++;
    leases_.emplace(lease, Lease{known->second, owner, now + options_.lease_ttl});
    ++held;
    ids.push_back(known->second);
    run.push_back({lease, page.header, page.slabs});
  }
  for (auto id = ids.rbegin(); id != ids.rend(); ++id) touch(*id, pages_.at(*id));
  if (held == 0) leases_by_owner_.erase(owner);
  return run;
}

void StoreIndex::release(Owner owner, uint64_t lease) {
  const auto found = leases_.find(lease);
  if (found != leases_.end() && found->second.owner == owner) end_lease(found);
}

void StoreIndex::release_corrupt(Owner owner, uint64_t lease) {
  const auto found = leases_.find(lease);
  if (found == leases_.end() || found->second.owner != owner) return;
  Page& page = pages_.at(found->second.page);
  if (!page.doomed) {
    page.doomed = true;
    by_identity_.erase(page.identity);
    ++counters_.corrupt_pages;
  }
  end_lease(found);
}

void StoreIndex::drop_owner(Owner owner) {
  for (auto it = reservations_.begin(); it != reservations_.end();) {
    const uint64_t id = (it++)->first;  // remove() erases the entry
    if (pages_.at(id).writer == owner) remove(id);
  }
  for (auto it = leases_.begin(); it != leases_.end();) {
    const auto lease = it++;
    if (lease->second.owner == owner) end_lease(lease);
  }
}

void StoreIndex::expire(TimePoint now) {
  while (!reservations_.empty() && reservations_.begin()->second <= now) {
    ++counters_.expired_reservations;
    remove(reservations_.begin()->first);
  }
  while (!leases_.empty() && leases_.begin()->second.expires <= now) {
    ++counters_.expired_leases;
    end_lease(leases_.begin());
  }
}

std::optional<TimePoint> StoreIndex::next_expiry() const {
  std::optional<TimePoint> next;
  if (!reservations_.empty()) next = reservations_.begin()->second;
  if (!leases_.empty())
    next = next ? std::min(*next, leases_.begin()->second.expires) : leases_.begin()->second.expires;
  return next;
}

bool StoreIndex::contains(const Hash128& identity) const {
  const auto known = by_identity_.find(identity);
  return known != by_identity_.end() && pages_.at(known->second).committed;
}

StoreLedger StoreIndex::ledger() const {
  const uint64_t in_flight = reservations_.size();
  return {.capacity = allocator_.capacity(),
          .requested = requested_,
          .used = allocator_.used(),
          .evictable = evictable_,
          .pinned = pinned_,
          .in_flight = in_flight_,
          .free = allocator_.capacity() - allocator_.used(),
          .pages_evictable = lru_.size(),
          .pages_pinned = pages_.size() - lru_.size() - in_flight,
          .pages_in_flight = in_flight};
}

void StoreIndex::set_pinned(uint64_t id, Page& page, bool pinned) {
  if (pinned) {
    lru_.erase({page.last_use, id});
    evictable_ -= page.bytes;
    pinned_ += page.bytes;
  } else {
    lru_.emplace(page.last_use, id);
    evictable_ += page.bytes;
    pinned_ -= page.bytes;
  }
}

void StoreIndex::touch(uint64_t id, Page& page) {
  const bool listed = lru_.erase({page.last_use, id}) > 0;
  page.last_use = next_use_++;
  if (listed) lru_.emplace(page.last_use, id);
}

void StoreIndex::end_lease(std::map<uint64_t, Lease>::iterator lease) {
  const uint64_t id = lease->second.page;
  const auto held = leases_by_owner_.find(lease->second.owner);
  if (--held->second == 0) leases_by_owner_.erase(held);
  leases_.erase(lease);
  Page& page = pages_.at(id);
  if (--page.leases > 0) return;
  set_pinned(id, page, false);
  if (page.doomed) remove(id);
}

void StoreIndex::remove(uint64_t id) {
  const auto found = pages_.find(id);
  const Page& page = found->second;
  LOWKEY_CHECK(page.leases == 0, "page {} is leased {} times", id, page.leases);
  for (const Slab& slab : page.slabs) {
    if (slab.bytes > 0) allocator_.free(slab.offset);
  }
  requested_ -= page.requested;
  if (page.committed) {
    evictable_ -= page.bytes;
    lru_.erase({page.last_use, id});
  } else {
    in_flight_ -= page.bytes;
    reservations_.erase(id);
  }
  if (!page.doomed) by_identity_.erase(page.identity);
  pages_.erase(found);
}

}  // namespace lowkey::kvstore
