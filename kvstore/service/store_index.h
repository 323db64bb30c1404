// What a store holds and where: pages by identity, their slabs in the pool, who is writing or reading them.
// Pure bookkeeping: no I/O, no clock (times come in and never go back). Not thread-safe: one owner, the I/O
// thread.
//
// Life of a page:  reserve -> (one-sided put by the owner) -> commit -> lookup/release ... -> coarser ->
// evicted. Reservations and leases expire, and end with their owner. A reader whose lease ran out may read
// bytes that have been given away; the checksums in the header turn that into a miss.
//
// Levels. A page may lack its top levels: it was stored so, or memory was needed. `known` slabs are those
// that its header has checksums for (PageHeader::levels_present and has_sink speak of them); the slabs that
// are there are some of those: a leading run of levels, and the sink. Which are there is told by Slab::bytes
// alone, because checksums are per slab: dropping a level leaves the header as it is. A writer that has more
// of the page than is there is granted the missing slabs only, and its header replaces the store's when it
// knows more. Slabs of two writers are joined only when their headers agree on the checksums of all slabs
// that both know.
//
// When memory is needed, the least recently used page that has more than one level gives up its top level;
// but pages of one level get no more than half of the pool, and beyond that the least recently used of them
// goes. So the newest half is whole, and the older half covers as many tokens as it can.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
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
#include "kvstore/service/evicted_memory.h"
#include "kvstore/service/page_slabs.h"

namespace lowkey::kvstore {

// Bytes by state. capacity = used + free and used = evictable + pinned + in_flight, to the byte.
struct StoreLedger {
  uint64_t capacity = 0;
  uint64_t requested = 0;  // of all pages held, before rounding to the slab alignment
  uint64_t used = 0;
  uint64_t evictable = 0;  // committed, not pinned
  uint64_t pinned = 0;     // committed, and leased, being completed or being written to disk now
  uint64_t in_flight = 0;  // reserved, not yet committed
  uint64_t free = 0;
  uint64_t pages_evictable = 0;
  uint64_t pages_pinned = 0;
  uint64_t pages_in_flight = 0;
};

// Since the start.
struct StoreCounters {
  uint64_t evicted_pages = 0;
  uint64_t level_drops = 0;
  uint64_t expired_leases = 0;
  uint64_t expired_reservations = 0;
  uint64_t corrupt_pages = 0;  // dropped because a reader's checksum did not match
};

class StoreIndex {
 public:
  using Owner = uint64_t;                   // a control connection's id, or
  static constexpr Owner kStoreItself = 0;  // whose reservations and leases do not expire

  struct Options {
    uint64_t capacity = 0;
    Duration reservation_ttl = std::chrono::seconds(30);
    Duration lease_ttl = std::chrono::seconds(30);
    size_t max_leases_per_owner = 65536;  // beyond it a lookup finds nothing
    size_t evictions_remembered = 65536;
    // A page was committed or has gained slabs (true), or is gone (false). Must not call back.
    std::function<void(const kernels::PageHeader&, bool held)> on_change;
  };

  enum class Grant { kGranted, kAlreadyPresent, kFull };
  struct Reservation {
    Grant grant = Grant::kFull;
    uint64_t id = 0;     // never reused
    Slabs slabs;         // to be written
    SlabMask there = 0;  // of those asked for, not to be written
  };
  struct Found {
    uint64_t lease = 0;
    TimePoint expires;
    size_t index = 0;  // in the lookup
    kernels::PageHeader header;
    Slabs slabs;
  };

  explicit StoreIndex(const Options& options);

  // Space for one page, or for what is missing of it; levels and pages give way as needed, and none when that
  // would not be enough. `slab_bytes`: at most kMaxSlabs, 0 for none, at least one positive. kAlreadyPresent:
  // no slab is missing, or somebody is writing the page just now, or its slabs have other sizes.
  Reservation reserve(Owner owner, const Hash128& identity, std::span<const uint32_t> slab_bytes,
                      TimePoint now);
  // Publishes what was written. False when the reservation is not this owner's or no longer there, or when
  // the header does not describe the slabs or contradicts the page; true again when it is repeated.
  bool commit(Owner owner, uint64_t reservation, const kernels::PageHeader& header, TimePoint now);
  void abort(Owner owner, uint64_t reservation);

  // The pages of `identities` that have the `wanted` slabs, each leased to `owner`; ends at the first that
  // lacks one. With gaps: all that have any of them. A slab that the page's header does not know is no lack:
  // pages behind the first have no sink, and the reader sees what is there. `wanted` 0: all that the header
  // knows. The first of the run becomes the most recently used: a prefix must not lose its beginning first.
  std::vector<Found> lookup(Owner owner, std::span<const Hash128> identities, SlabMask wanted, bool gaps,
                            TimePoint now);
  void release(Owner owner, uint64_t lease);
  // As release(); the page is not found any more and its bytes are freed when the last reader lets go.
  void release_corrupt(Owner owner, uint64_t lease);

  // The same in steps, for lookups that wait for pages from disk.
  SlabMask present(const Hash128& identity) const;                   // 0: not committed
  SlabMask lacking(const Hash128& identity, SlabMask wanted) const;  // all of them when it is not there
  // Empty when the page is not there, or the owner's leases have reached their bound.
  std::optional<Found> lease(Owner owner, const Hash128& identity, TimePoint now);
  void touch(std::span<const Hash128> identities);  // the first becomes the most recently used
  bool being_written(const Hash128& identity) const;
  // Tells how long ago the page was evicted when it is wanted again, once.
  std::optional<Duration> evicted_since(const Hash128& identity, TimePoint now);

  void drop_owner(Owner owner);  // its reservations and leases end
  void expire(TimePoint now);
  std::optional<TimePoint> next_expiry() const;  // empty: nothing can expire

  bool contains(const Hash128& identity) const { return present(identity) != 0; }
  size_t num_leases() const { return lease_expiry_.size(); }  // of others than the store itself
  StoreLedger ledger() const;
  const StoreCounters& counters() const { return counters_; }
  void for_each(const std::function<void(const kernels::PageHeader&)>& visit) const;  // committed, findable

 private:
  struct Page {
    Hash128 identity;
    Slabs slabs;             // that are there
    SlabMask known = 0;      // to the header
    uint64_t bytes = 0;      // rounded, in the pool
    uint64_t requested = 0;  // not rounded
    bool committed = false;
    bool doomed = false;        // reported corrupt: gone from by_identity_
    uint32_t pins = 0;          // leases, and a reservation of missing slabs
    uint64_t reservation = 0;   // that writes it now; 0: none
    uint64_t committed_by = 0;  // the last reservation that was
    uint64_t last_use = 0;
    kernels::PageHeader header;
  };
  struct Pending {
    uint64_t page = 0;
    Owner owner = 0;
    Slabs slabs;           // to be written
    SlabMask offered = 0;  // that the writer has
    uint64_t bytes = 0;
    uint64_t requested = 0;
    TimePoint expires;
  };
  struct Lease {
    uint64_t page = 0;
    Owner owner = 0;
    TimePoint expires;
  };
  using Ids = std::set<std::pair<uint64_t, uint64_t>>;  // (last use, page)

  Ids& list_of(const Page& page);
  void list(uint64_t id, const Page& page, bool listed);
  void pin(uint64_t id, Page& page);
  void unpin(uint64_t id, Page& page);
  void touch_page(uint64_t id, Page& page);
  bool make_room(const Slabs& wanted, Slabs& placed, TimePoint now);
  bool place(const Slabs& wanted, Slabs& placed);
  bool give_way(TimePoint now);  // one level or one page
  void drop_top_level(uint64_t id);
  void end_lease(std::map<uint64_t, Lease>::iterator lease);
  void end_pending(uint64_t reservation);  // not committed
  bool joins(const Page& page, const Pending& pending, const kernels::PageHeader& header) const;
  void doom(Page& page);
  void remove(uint64_t id);  // frees the slabs and forgets the page
  TimePoint expiry(Owner owner, Duration ttl, TimePoint now) const;

  const Options options_;
  OffsetAllocator allocator_;
  StoreCounters counters_;
  EvictedMemory evicted_;
  uint64_t next_id_ = 1;
  uint64_t next_use_ = 1;
  uint64_t requested_ = 0;
  uint64_t evictable_ = 0;
  uint64_t evictable_coarse_ = 0;  // of it, in pages of one level
  uint64_t pinned_ = 0;
  uint64_t in_flight_ = 0;
  uint64_t uncommitted_ = 0;  // pages
  std::unordered_map<uint64_t, Page> pages_;
  std::unordered_map<Hash128, uint64_t> by_identity_;  // committed or in flight, not doomed
  Ids coarse_, fine_;                                  // the evictable pages: of one level, of more
  std::map<uint64_t, Pending> pending_;                // by reservation
  std::map<uint64_t, Lease> leases_;
  std::set<std::pair<TimePoint, uint64_t>> pending_expiry_, lease_expiry_;  // of those that do expire
  std::unordered_map<Owner, size_t> leases_by_owner_;
};

}  // namespace lowkey::kvstore
