// Who uses which page: the leader's bookkeeping of the device tier.
//
// A page is in one of three states: *used* (somebody holds a PageRef), *evictable* (nobody does, but it is
// published: findable by its identity until its memory is needed, least recently used first), or free. It
// knows tokens and bytes, not sequences or requests.
//
// Thread rule: the step thread only. The pool outlives its references.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/hash128.h"
#include "kvstore/page/page_memory.h"

namespace lowkey::kvstore {

class PagePool;
using PageId = SlabId;  // a page is named by its level-0 slab

// A counted reference to a page: while one exists the page stays; the last one returns it. Nobody frees by
// hand.
class PageRef {
 public:
  PageRef() = default;
  PageRef(const PageRef& other);
  PageRef(PageRef&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  PageRef& operator=(PageRef other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~PageRef();

  explicit operator bool() const { return pool_ != nullptr; }
  PageId id() const { return id_; }
  bool operator==(const PageRef& other) const { return pool_ == other.pool_ && id_ == other.id_; }
  // Slab ids: levels, then the sink where the page has one.
  std::span<const SlabId> slabs() const;

 private:
  friend class PagePool;
  PageRef(PagePool* pool, PageId id);  // takes a new reference

  PagePool* pool_ = nullptr;
  PageId id_ = 0;
};

// The tail buffer of one running sequence; returned with the object.
class TailRef {
 public:
  TailRef() = default;
  TailRef(TailRef&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  TailRef& operator=(TailRef&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~TailRef();

  explicit operator bool() const { return pool_ != nullptr; }
  SlabId id() const { return id_; }

 private:
  friend class PagePool;
  TailRef(PagePool* pool, SlabId id) : pool_(pool), id_(id) {}

  PagePool* pool_ = nullptr;
  SlabId id_ = 0;
};

class PagePool {
 public:
  explicit PagePool(PageMemory& memory);
  ~PagePool();  // REQUIRES: no reference left
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // A page with undefined content, evicting as needed; empty when everything left is in use.
  std::optional<PageRef> allocate(bool with_sink);
  std::optional<TailRef> allocate_tail();

  // The published page with this identity, if its tokens are these (a hash alone is not trusted).
  std::optional<PageRef> find(const Hash128& identity, std::span<const int32_t> tokens);
  // A reference to the page if it is still published under this identity.
  std::optional<PageRef> find(PageId page, const Hash128& identity);
  bool contains(const Hash128& identity) const { return index_.contains(identity); }

  // Makes a complete page findable. When an equal page is published already, that one is returned and the
  // caller's is not published: exchange it, and the double goes back.
  PageRef publish(const PageRef& page, const Hash128& identity, std::span<const int32_t> tokens);

  Ledger ledger() const;
  // Bytes that allocation could still get: free and evictable.
  uint64_t available_bytes() const { return memory_->free_bytes() + evictable_bytes_; }
  uint64_t page_bytes(bool with_sink) const;  // slabs only

  uint64_t used_pages() const { return used_pages_; }
  uint64_t evictable_pages() const { return evictable_pages_; }
  uint64_t used_tails() const { return used_tails_; }
  uint64_t evictions() const { return evictions_; }
  PageMemory& memory() { return *memory_; }

 private:
  friend class PageRef;
  friend class TailRef;
  static constexpr PageId kNone = UINT32_MAX;

  struct Record {
    std::array<SlabId, kernels::kMaxSlabs> slabs{};
    uint32_t references = 0;
    bool allocated = false;
    bool has_sink = false;
    bool published = false;
    PageId older = kNone, newer = kNone;  // in the list of evictable pages
    Hash128 identity;
    std::vector<int32_t> tokens;  // of a published page
  };

  void add_reference(PageId id);
  void drop_reference(PageId id);
  void drop_tail(SlabId id);
  void link_newest(PageId id);
  void unlink(PageId id);
  bool evict_oldest();
  void free_page(PageId id);
  std::optional<SlabId> allocate_slab(SlabPool& pool);
  std::span<const SlabId> slabs_of(PageId id) const;

  PageMemory* memory_;
  std::vector<Record> records_;  // by PageId
  std::unordered_map<Hash128, PageId> index_;
  PageId oldest_ = kNone, newest_ = kNone;
  uint64_t used_pages_ = 0, evictable_pages_ = 0, used_tails_ = 0, evictions_ = 0;
  uint64_t evictable_bytes_ = 0;
};

}  // namespace lowkey::kvstore
