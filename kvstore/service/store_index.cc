#include "kvstore/service/store_index.h"

#include <algorithm>

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

}  // namespace

StoreIndex::StoreIndex(const Options& options)
    : options_(options), allocator_(options.capacity), evicted_(options.evictions_remembered) {}

TimePoint StoreIndex::expiry(Owner owner, Duration ttl, TimePoint now) const {
  return owner == kStoreItself ? TimePoint::max() : now + ttl;
}

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

}  // namespace lowkey::kvstore
