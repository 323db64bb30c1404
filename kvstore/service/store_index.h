// What a store holds and where: pages by identity, their slabs in the pool, who is writing or reading them.
// Pure bookkeeping: no I/O, no clock (times come in and never go back). Not thread-safe: one owner, the I/O
// thread.
//
// Life of a page:  reserve -> (one-sided put by the owner) -> commit -> lookup/release ... -> evicted.
// Reservations and leases expire, and end with their owner. A reader whose lease ran out may read bytes that
// have been given away; the checksums in the header turn that into a miss.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/deadline.h"
#include "base/hash128.h"
#include "kernels/page/page_header.h"
#include "kvstore/page/offset_allocator.h"

namespace lowkey::kvstore {

struct Slab {
  uint64_t offset = 0;  // into the pool
  uint32_t bytes = 0;   // as asked for; 0: the page has no such slab
};
using Slabs = std::array<Slab, kernels::kMaxSlabs>;  // levels, then the sink

// Bytes by state. capacity = used + free and used = evictable + pinned + in_flight, to the byte.
struct StoreLedger {
  uint64_t capacity = 0;
  uint64_t requested = 0;  // of all pages held, before rounding to the slab alignment
  uint64_t used = 0;
  uint64_t evictable = 0;  // committed, not leased
  uint64_t pinned = 0;     // committed, leased now
  uint64_t in_flight = 0;  // reserved, not yet committed
  uint64_t free = 0;
  uint64_t pages_evictable = 0;
  uint64_t pages_pinned = 0;
  uint64_t pages_in_flight = 0;
};

// Since the start.
struct StoreCounters {
  uint64_t evicted_pages = 0;
  uint64_t expired_leases = 0;
  uint64_t expired_reservations = 0;
  uint64_t corrupt_pages = 0;  // dropped because a reader's checksum did not match
};

class StoreIndex {
 public:
  using Owner = uint64_t;  // a control connection's id

  struct Options {
    uint64_t capacity = 0;
    Duration reservation_ttl = std::chrono::seconds(30);
    Duration lease_ttl = std::chrono::seconds(30);
    size_t max_leases_per_owner = 65536;  // beyond it a lookup finds nothing
  };

  enum class Grant { kGranted, kAlreadyPresent, kFull };
  struct Reservation {
    Grant grant = Grant::kFull;
    uint64_t id = 0;  // never reused
    Slabs slabs;
  };
  struct Found {
    uint64_t lease = 0;
    kernels::PageHeader header;
    Slabs slabs;
  };

  explicit StoreIndex(const Options& options);

  // Space for one page; evicts the least recently used unleased pages as needed, and none when that would not
  // be enough. `slab_bytes`: at most kMaxSlabs, 0 for none, at least one positive. A page that is present, or
  // that somebody is writing just now, is kAlreadyPresent.
  Reservation reserve(Owner owner, const Hash128& identity, std::span<const uint32_t> slab_bytes,
                      TimePoint now);
  // The slabs of a live reservation of this owner.
  std::optional<Slabs> reserved(Owner owner, uint64_t reservation) const;
  // Publishes the page. False when the reservation is not this owner's or no longer there, or when the header
  // is of another identity; true again when it is repeated.
  bool commit(Owner owner, uint64_t reservation, const kernels::PageHeader& header, TimePoint now);
  void abort(Owner owner, uint64_t reservation);

  // The leading run of `identities` that is committed, each leased to `owner`. The first of the run becomes
  // the most recently used: a prefix must not lose its beginning first.
  std::vector<Found> lookup(Owner owner, std::span<const Hash128> identities, TimePoint now);
  void release(Owner owner, uint64_t lease);
  // As release(); the page is not found any more and its bytes are freed when the last reader lets go.
  void release_corrupt(Owner owner, uint64_t lease);

  void drop_owner(Owner owner);  // its reservations and leases end
  void expire(TimePoint now);
  std::optional<TimePoint> next_expiry() const;  // empty: nothing can expire

  bool contains(const Hash128& identity) const;  // committed
  size_t num_leases() const { return leases_.size(); }
  StoreLedger ledger() const;
  const StoreCounters& counters() const { return counters_; }

 private:
  struct Page {
    Hash128 identity;
    Slabs slabs;
    uint64_t bytes = 0;      // rounded, in the pool
    uint64_t requested = 0;  // not rounded
    Owner writer = 0;
    bool committed = false;
    bool doomed = false;  // reported corrupt: gone from by_identity_
    uint32_t leases = 0;
    uint64_t last_use = 0;
    kernels::PageHeader header;
  };
  struct Lease {
    uint64_t page = 0;
    Owner owner = 0;
    TimePoint expires;
  };

  std::optional<Slabs> allocate(std::span<const uint32_t> slab_bytes);
  void set_pinned(uint64_t id, Page& page, bool pinned);
  void touch(uint64_t id, Page& page);
  void end_lease(std::map<uint64_t, Lease>::iterator lease);
  void remove(uint64_t id);  // frees the slabs and forgets the page

  const Options options_;
  OffsetAllocator allocator_;
  StoreCounters counters_;
  uint64_t next_id_ = 1;
  uint64_t next_use_ = 1;
  uint64_t requested_ = 0;
  uint64_t evictable_ = 0;
  uint64_t pinned_ = 0;
  uint64_t in_flight_ = 0;
  std::unordered_map<uint64_t, Page> pages_;           // by page id = the id of its reservation
  std::unordered_map<Hash128, uint64_t> by_identity_;  // committed or in flight, not doomed
  std::set<std::pair<uint64_t, uint64_t>> lru_;        // (last_use, page id) of the evictable pages
  std::map<uint64_t, TimePoint> reservations_;         // page id -> expiry; ids and times grow together
  std::map<uint64_t, Lease> leases_;                   // likewise
  std::unordered_map<Owner, size_t> leases_by_owner_;
};

}  // namespace lowkey::kvstore
