// Who uses a page or a tail of PagePool says so by holding one of these; nobody frees by hand. They do not
// outlive the pool. Thread rule: the pool's.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "kvstore/page/slab_pool.h"

namespace lowkey::kvstore {

class PagePool;
using PageId = SlabId;  // a page is named by its level-0 slab

// A counted reference to a page: while one exists the page stays; the last one returns it.
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
  // Slab ids: all levels of the layout, then the sink where the page has one; kNoSlab where a level is not
  // there.
  std::span<const SlabId> slabs() const;
  int levels() const;        // leading levels that may be read now; 0: nothing has been loaded yet
  bool lossy() const;        // came back through a lossy spill format: coarse at any number of levels
  uint32_t version() const;  // changes whenever slabs or levels do; never the same for two uses of an id

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

}  // namespace lowkey::kvstore
