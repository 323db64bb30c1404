// Who uses which page: the leader's bookkeeping of the device tier.
//
// A page is in one of three states: *used* (somebody holds a PageRef), *evictable* (nobody does, but it is
// published: findable by its identity until its memory is needed), or free. It knows tokens and bytes, not
// sequences or requests.
//
// A page has the slabs of its leading levels, at least of the first, and says how many of them may be read:
// fewer than it has while data is on its way. When memory is needed, evictable pages lose their top levels,
// least recently used first, where set_pressure() wants that; then they go: those of which a store has a copy
// before the others, least recently used first.
//
// Thread rule: the step thread only. The pool outlives its references.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/hash128.h"
#include "kvstore/page/idle_pages.h"
#include "kvstore/page/page_memory.h"
#include "kvstore/page/page_ref.h"

namespace lowkey::kvstore {

class PagePool {
 public:
  // What evictable pages give when memory is needed.
  struct Pressure {
    bool drop_levels = false;  // top levels first
    int min_levels = 1;        // that they keep, until they are evicted
  };

  explicit PagePool(PageMemory& memory);
  ~PagePool();  // REQUIRES: no reference left
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  void set_pressure(const Pressure& pressure) { pressure_ = pressure; }
  const Pressure& pressure() const { return pressure_; }
  // Told of every identity that becomes findable (true) or ceases to be (false); must not call back.
  std::function<void(const Hash128&, bool added)> on_change;

  // A page of undefined content with slabs of its first `levels` levels (0: all), which count as readable:
  // set_levels() says otherwise. Evicts as needed; empty when everything left is in use.
  std::optional<PageRef> allocate(bool with_sink, int levels = 0);
  std::optional<TailRef> allocate_tail();

  // Slabs up to `levels` levels; what may be read stays. False: no memory, and nothing has changed.
  bool grow(const PageRef& page, int levels);
  // Slabs beyond what may be read go back: what was to land there has not come. REQUIRES: no transfer in
  // flight to them, and something may be read.
  void trim(const PageRef& page);
  // What may be read from now on: data has landed on every rank. REQUIRES: its slabs are there. Slabs beyond
  // go back with the last reference.
  void set_levels(const PageRef& page, int levels, bool lossy = false);
  // Frees the top level. REQUIRES: can_drop_level(), and no step, copy or transfer in flight uses that slab.
  void drop_level(PageId page);
  int levels(PageId page) const { return records_[page].levels; }
  bool is_shared(PageId page) const { return records_[page].references > 1; }
  SlabId slab(PageId page, int level) const { return records_[page].slabs[level]; }
  // It has slabs of levels that are not to be read yet.
  bool is_growing(PageId page) const { return records_[page].levels < records_[page].held; }
  bool can_drop_level(PageId page) const {  // more than one level, and none on its way
    return records_[page].levels > 1 && records_[page].levels == records_[page].held;
  }

  // The published page with this identity, if its tokens are these (a hash alone is not trusted).
  std::optional<PageRef> find(const Hash128& identity, std::span<const int32_t> tokens);
  // A reference to the page if it is still published under this identity.
  std::optional<PageRef> find(PageId page, const Hash128& identity);
  bool contains(const Hash128& identity) const { return index_.contains(identity); }
  bool is_whole(const Hash128& identity) const;  // findable, at all levels, and not lossy
  // Of a published page; none of others.
  std::span<const int32_t> tokens(PageId page) const { return records_[page].tokens; }
  std::vector<Hash128> identities() const;  // of all findable pages

  // Makes a complete page findable. When an equal page is published already, that one is returned and the
  // caller's is not published: exchange it, and the double goes back. But when the caller's is better (full
  // where the other is coarse, or else of more levels, or not lossy), it takes the other's place.
  // `first_token`: its position. REQUIRES: levels() >= 1
  PageRef publish(const PageRef& page, const Hash128& identity, std::span<const int32_t> tokens,
                  uint64_t first_token = 0);

  void evict_all();  // that nobody refers to

  // Whether a store has a copy, as far as is known. No effect where the identity is not findable.
  void set_stored(const Hash128& identity, bool stored);
  void forget_stored();  // of all pages: the stores are others now
  struct Unstored {
    PageId page;
    Hash128 identity;
    uint64_t first_token;
  };
  // Findable pages that no store is known to have, those apart that came back through a lossy format: at most
  // `most` of ids >= *next, which becomes what to go on with; max_pages() when all ids were looked at.
  std::vector<Unstored> unstored(PageId* next, size_t most) const;

  Ledger ledger() const;
  // Bytes that allocation could still get: free and evictable.
  uint64_t available_bytes() const { return memory_->free_bytes() + evictable_bytes_; }
  uint64_t page_bytes(bool with_sink, int levels = 0) const;  // slabs only; 0: all levels

  uint64_t used_pages() const { return used_pages_; }
  uint64_t evictable_pages() const { return idle_.count(); }
  uint64_t used_tails() const { return used_tails_; }
  uint64_t evictions() const { return evictions_; }
  uint64_t idle_level_drops() const { return idle_level_drops_; }  // of evictable pages
  // How often set_levels() and drop_level() have changed what may be read of some page.
  uint64_t level_changes() const { return level_changes_; }
  uint64_t in_use_level_drops() const { return in_use_level_drops_; }  // by drop_level()
  PageMemory& memory() { return *memory_; }

 private:
  friend class PageRef;
  friend class TailRef;

  struct Record {
    std::array<SlabId, kernels::kMaxSlabs> slabs{};
    uint32_t references = 0;
    uint32_t version = 0;
    uint8_t held = 0;    // levels that have slabs
    uint8_t levels = 0;  // that may be read
    bool allocated = false;
    bool has_sink = false;
    bool lossy = false;
    bool published = false;
    bool stored = false;
    Hash128 identity;
    std::vector<int32_t> tokens;  // of a published page
    uint64_t first_token = 0;
  };

  void add_reference(PageId id);
  void drop_reference(PageId id);
  void drop_tail(SlabId id);
  void add_idle(PageId id);
  void remove_idle(PageId id);
  bool relieve(bool by_levels);
  bool drop_idle_level();
  bool evict_first();
  void unpublish(PageId id);
  void free_page(PageId id);
  void free_levels(PageId id, int from);
  uint64_t held_bytes(const Record& record) const;
  bool is_better(const Record& a, const Record& b) const;
  std::optional<SlabId> allocate_slab(SlabPool& pool);
  bool allocate_levels(std::span<SlabId> slabs, int from, int to);
  std::span<const SlabId> slabs_of(PageId id) const;

  PageMemory* memory_;
  std::vector<Record> records_;  // by PageId
  std::unordered_map<Hash128, PageId> index_;
  IdlePages idle_;  // the evictable ones
  Pressure pressure_;
  uint32_t versions_ = 0;
  uint64_t used_pages_ = 0, used_tails_ = 0, evictions_ = 0;
  uint64_t level_changes_ = 0;
  uint64_t idle_level_drops_ = 0, in_use_level_drops_ = 0;
  uint64_t evictable_bytes_ = 0;
};

}  // namespace lowkey::kvstore
