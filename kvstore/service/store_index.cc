#include "kvstore/service/store_index.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace lowkey::kvstore {

namespace {

struct Sum {
  uint64_t bytes = 0, requested = 0;
};

Sum sum_of(const Slabs& slabs) {
  Sum sum;
  for (const Slab& slab : slabs) {
    sum.bytes += OffsetAllocator::rounded(slab.bytes);
    sum.requested += slab.bytes;
  }
  return sum;
}

int levels_of(const kernels::PageHeader& header, SlabMask present) {
  return std::popcount(header.levels_present & present);
}

}  // namespace

SlabMask mask_of(const Slabs& slabs) {
  SlabMask mask = 0;
  for (size_t i = 0; i < slabs.size(); ++i) mask |= SlabMask{slabs[i].bytes > 0} << i;
  return mask;
}

bool describes(const kernels::PageHeader& header, SlabMask slabs) {
  const SlabMask levels = header.levels_present, run = slabs & levels;
  if (run == 0 || (levels & (levels + 1)) != 0 || (run & (run + 1)) != 0) return false;
  const SlabMask sink = slabs & ~levels;
  return header.has_sink ? std::has_single_bit(sink) && sink > levels : sink == 0;
}

SlabMask known_slabs(const kernels::PageHeader& header, SlabMask slabs) {
  return slabs | header.levels_present;
}

StoreIndex::StoreIndex(const Options& options)
    : options_(options), allocator_(options.capacity), evicted_(options.evictions_remembered) {}

TimePoint StoreIndex::expiry(Owner owner, Duration ttl, TimePoint now) const {
  return owner == kStoreItself ? TimePoint::max() : now + ttl;
}

// ---- writing
// ------------------------------------------------------------------------------------------------

StoreIndex::Reservation StoreIndex::reserve(Owner owner, const Hash128& identity,
                                            std::span<const uint32_t> slab_bytes, TimePoint now) {
  LOWKEY_CHECK(!slab_bytes.empty() && slab_bytes.size() <= kernels::kMaxSlabs, "{} slabs", slab_bytes.size());
  expire(now);
  Slabs wanted;
  for (size_t i = 0; i < slab_bytes.size(); ++i) wanted[i].bytes = slab_bytes[i];
  const SlabMask offered = mask_of(wanted);
  LOWKEY_CHECK(offered != 0, "a page of no bytes");

  const auto known = by_identity_.find(identity);
  uint64_t id = 0;
  SlabMask there = 0;
  if (known != by_identity_.end()) {
    id = known->second;
    Page& page = pages_.at(id);
    touch_page(id, page);
    if (!page.committed || page.reservation != 0) return {.grant = Grant::kAlreadyPresent};
    for (size_t i = 0; i < wanted.size(); ++i) {
      const uint32_t bytes = page.slabs[i].bytes;
      if (bytes == 0 || wanted[i].bytes == 0) continue;
      if (bytes != wanted[i].bytes) return {.grant = Grant::kAlreadyPresent};
      wanted[i].bytes = 0;
    }
    there = mask_of(page.slabs) & offered;
    if (there == offered) return {.grant = Grant::kAlreadyPresent};
    pin(id, page);  // not to make room for its own levels
  }
  Slabs placed;
  if (!make_room(wanted, placed, now)) {
    if (id != 0) unpin(id, pages_.at(id));
    return {.grant = Grant::kFull};
  }
  const uint64_t reservation = next_id_++;
  if (id == 0) {
    id = reservation;
    pages_.emplace(id, Page{.identity = identity});
    by_identity_.emplace(identity, id);
    ++uncommitted_;
  }
  pages_.at(id).reservation = reservation;
  const auto [bytes, requested] = sum_of(placed);
  const TimePoint expires = expiry(owner, options_.reservation_ttl, now);
  pending_.emplace(reservation, Pending{id, owner, placed, offered, bytes, requested, expires});
  if (owner != kStoreItself) pending_expiry_.emplace(expires, reservation);
  in_flight_ += bytes;
  requested_ += requested;
  return {.grant = Grant::kGranted, .id = reservation, .slabs = placed, .there = there};
}

// Nothing gives way for slabs that cannot fit anyhow. Fragments between pinned slabs can still refuse them.
bool StoreIndex::make_room(const Slabs& wanted, Slabs& placed, TimePoint now) {
  if (sum_of(wanted).bytes > allocator_.capacity() - allocator_.used() + evictable_) return false;
  while (!place(wanted, placed)) {
    if (!give_way(now)) return false;
  }
  return true;
}

bool StoreIndex::place(const Slabs& wanted, Slabs& placed) {
  placed = {};
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i].bytes == 0) continue;
    const auto offset = allocator_.allocate(wanted[i].bytes, i > 0);  // upper levels go first
    if (!offset) {
      for (const Slab& slab : placed) {
        if (slab.bytes > 0) allocator_.free(slab.offset);
      }
      return false;
    }
    placed[i] = {*offset, wanted[i].bytes};
  }
  return true;
}

bool StoreIndex::give_way(TimePoint now) {
  if (!fine_.empty() && evictable_coarse_ <= allocator_.capacity() / 2) {
    drop_top_level(fine_.begin()->second);
    return true;
  }
  const Ids& oldest = coarse_.empty() ? fine_ : coarse_;
  if (oldest.empty()) return false;
  const uint64_t id = oldest.begin()->second;
  ++counters_.evicted_pages;
  evicted_.evicted(pages_.at(id).identity, now);
  remove(id);
  return true;
}

void StoreIndex::drop_top_level(uint64_t id) {
  Page& page = pages_.at(id);
  list(id, page, false);
  Slab& top = page.slabs[levels_of(page.header, mask_of(page.slabs)) - 1];
  allocator_.free(top.offset);
  page.bytes -= OffsetAllocator::rounded(top.bytes);
  page.requested -= top.bytes;
  requested_ -= top.bytes;
  top = {};
  ++counters_.level_drops;
  list(id, page, true);
}

bool StoreIndex::commit(Owner owner, uint64_t reservation, const kernels::PageHeader& header, TimePoint now) {
  expire(now);
  const auto found = pending_.find(reservation);
  if (found == pending_.end()) {
    const auto known = by_identity_.find(header.identity);
    return known != by_identity_.end() && pages_.at(known->second).committed_by == reservation;
  }
  if (found->second.owner != owner) return false;
  const Pending pending = found->second;
  Page& page = pages_.at(pending.page);
  if (page.doomed || !joins(page, pending, header)) return false;
  if (!page.committed || header.levels_present > page.header.levels_present) page.header = header;
  for (size_t i = 0; i < page.slabs.size(); ++i) {
    if (pending.slabs[i].bytes > 0) page.slabs[i] = pending.slabs[i];
  }
  page.known |= known_slabs(header, pending.offered);
  page.reservation = 0;
  page.committed_by = reservation;
  page.last_use = next_use_++;
  pending_.erase(found);
  pending_expiry_.erase({pending.expires, reservation});
  in_flight_ -= pending.bytes;
  page.bytes += pending.bytes;
  page.requested += pending.requested;
  if (page.committed) {
    pinned_ += pending.bytes;
    unpin(pending.page, page);
  } else {
    page.committed = true;
    --uncommitted_;
    list(pending.page, page, true);
  }
  if (options_.on_change) options_.on_change(page.header, true);
  return true;
}

bool StoreIndex::joins(const Page& page, const Pending& pending, const kernels::PageHeader& header) const {
  const SlabMask speaks_of = known_slabs(header, pending.offered);
  if (header.identity != page.identity || !describes(header, pending.offered)) return false;
  if (pending.owner != kStoreItself && speaks_of != pending.offered) return false;
  if (!page.committed) return true;
  const kernels::PageHeader& mine = page.header;
  if (header.model_fingerprint != mine.model_fingerprint || header.rank != mine.rank ||
      header.layout_fingerprint != mine.layout_fingerprint || header.num_ranks != mine.num_ranks ||
      header.read_at_least_level != mine.read_at_least_level || header.has_sink != mine.has_sink) {
    return false;
  }
  const SlabMask both = page.known & speaks_of;
  for (size_t i = 0; i < mine.checksums.size(); ++i) {
    if ((both >> i & 1) != 0 && header.checksums[i] != mine.checksums[i]) return false;
  }
  return true;
}

void StoreIndex::abort(Owner owner, uint64_t reservation) {
  const auto found = pending_.find(reservation);
  if (found != pending_.end() && found->second.owner == owner) end_pending(reservation);
}

void StoreIndex::end_pending(uint64_t reservation) {
  const auto found = pending_.find(reservation);
  const Pending pending = found->second;
  pending_.erase(found);
  pending_expiry_.erase({pending.expires, reservation});
  for (const Slab& slab : pending.slabs) {
    if (slab.bytes > 0) allocator_.free(slab.offset);
  }
  in_flight_ -= pending.bytes;
  requested_ -= pending.requested;
  Page& page = pages_.at(pending.page);
  page.reservation = 0;
  page.committed ? unpin(pending.page, page) : remove(pending.page);
}

// ---- reading
// ------------------------------------------------------------------------------------------------

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

// ---- endings
// ------------------------------------------------------------------------------------------------

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

// ---- books
// --------------------------------------------------------------------------------------------------

StoreLedger StoreIndex::ledger() const {
  const uint64_t evictable = coarse_.size() + fine_.size();
  return {.capacity = allocator_.capacity(),
          .requested = requested_,
          .used = allocator_.used(),
          .evictable = evictable_,
          .pinned = pinned_,
          .in_flight = in_flight_,
          .free = allocator_.capacity() - allocator_.used(),
          .pages_evictable = evictable,
          .pages_pinned = pages_.size() - evictable - uncommitted_,
          .pages_in_flight = uncommitted_};
}

void StoreIndex::for_each(const std::function<void(const kernels::PageHeader&)>& visit) const {
  for (const auto& [identity, id] : by_identity_) {
    if (const Page& page = pages_.at(id); page.committed) visit(page.header);
  }
}

StoreIndex::Ids& StoreIndex::list_of(const Page& page) {
  return levels_of(page.header, mask_of(page.slabs)) > 1 ? fine_ : coarse_;
}

void StoreIndex::list(uint64_t id, const Page& page, bool listed) {
  Ids& ids = list_of(page);
  listed ? (void)ids.emplace(page.last_use, id) : (void)ids.erase({page.last_use, id});
  const auto count = [&](uint64_t& bytes) { listed ? bytes += page.bytes : bytes -= page.bytes; };
  count(evictable_);
  if (&ids == &coarse_) count(evictable_coarse_);
}

void StoreIndex::pin(uint64_t id, Page& page) {
  if (page.pins++ > 0) return;
  list(id, page, false);
  pinned_ += page.bytes;
}

void StoreIndex::unpin(uint64_t id, Page& page) {
  if (--page.pins > 0) return;
  pinned_ -= page.bytes;
  list(id, page, true);
  if (page.doomed) remove(id);
}

void StoreIndex::touch_page(uint64_t id, Page& page) {
  const bool listed = page.committed && page.pins == 0;
  if (listed) list(id, page, false);
  page.last_use = next_use_++;
  if (listed) list(id, page, true);
}

void StoreIndex::remove(uint64_t id) {
  const auto found = pages_.find(id);
  const Page& page = found->second;
  LOWKEY_CHECK(page.pins == 0, "page {} is pinned {} times", id, page.pins);
  if (page.committed) {
    list(id, page, false);
    for (const Slab& slab : page.slabs) {
      if (slab.bytes > 0) allocator_.free(slab.offset);
    }
    requested_ -= page.requested;
    if (!page.doomed && options_.on_change) options_.on_change(page.header, false);
  } else {
    --uncommitted_;
  }
  if (!page.doomed) by_identity_.erase(page.identity);
  pages_.erase(found);
}

}  // namespace lowkey::kvstore
