#include "kvstore/page/page_pool.h"

#include <algorithm>

namespace lowkey::kvstore {

using kernels::kPageHeaderBytes;

PageRef::PageRef(PagePool* pool, PageId id) : pool_(pool), id_(id) {
  pool_->add_reference(id_);
}
PageRef::PageRef(const PageRef& other) : pool_(other.pool_), id_(other.id_) {
  if (pool_ != nullptr) pool_->add_reference(id_);
}
PageRef::~PageRef() {
  if (pool_ != nullptr) pool_->drop_reference(id_);
}
std::span<const SlabId> PageRef::slabs() const {
  return pool_->slabs_of(id_);
}

TailRef::~TailRef() {
  if (pool_ != nullptr) pool_->drop_tail(id_);
}

PagePool::PagePool(PageMemory& memory) : memory_(&memory), records_(memory.max_pages()) {}

PagePool::~PagePool() {
  LOWKEY_CHECK(used_pages_ == 0 && used_tails_ == 0, "{} pages and {} tails never returned", used_pages_,
               used_tails_);
  while (evict_oldest()) {
  }
}

std::optional<SlabId> PagePool::allocate_slab(SlabPool& pool) {
  std::optional<SlabId> slab = pool.allocate();
  while (!slab && evict_oldest()) slab = pool.allocate();
  return slab;
}

std::optional<PageRef> PagePool::allocate(bool with_sink) {
  const int count = with_sink ? memory_->layout().num_slabs() : memory_->layout().num_levels;
  std::array<SlabId, kernels::kMaxSlabs> slabs{};
  for (int i = 0; i < count; ++i) {
    const std::optional<SlabId> slab = allocate_slab(memory_->slabs(i));
    if (!slab) {
      while (i-- > 0) memory_->slabs(i).free(slabs[i]);
      return std::nullopt;
    }
    slabs[i] = *slab;
  }
  Record& record = records_[slabs[0]];
  LOWKEY_CHECK(!record.allocated, "page {} allocated twice", slabs[0]);
  record = Record{.slabs = slabs, .allocated = true, .has_sink = count > memory_->layout().num_levels};
  return PageRef(this, slabs[0]);
}

std::optional<TailRef> PagePool::allocate_tail() {
  const std::optional<SlabId> slab = allocate_slab(memory_->tails());
  if (!slab) return std::nullopt;
  ++used_tails_;
  return TailRef(this, *slab);
}

std::optional<PageRef> PagePool::find(const Hash128& identity, std::span<const int32_t> tokens) {
  const auto found = index_.find(identity);
  if (found == index_.end()) return std::nullopt;
  if (!std::ranges::equal(records_[found->second].tokens, tokens)) return std::nullopt;
  return PageRef(this, found->second);
}

std::optional<PageRef> PagePool::find(PageId page, const Hash128& identity) {
  const Record& record = records_[page];
  if (!record.published || record.identity != identity) return std::nullopt;
  return PageRef(this, page);
}

PageRef PagePool::publish(const PageRef& page, const Hash128& identity, std::span<const int32_t> tokens) {
  const auto [found, inserted] = index_.try_emplace(identity, page.id());
  if (!inserted) {
    // A different page under the same hash stays what it was; ours remains private.
    if (!std::ranges::equal(records_[found->second].tokens, tokens)) return page;
    return PageRef(this, found->second);
  }
  Record& record = records_[page.id()];
  LOWKEY_CHECK(!record.published, "page {} published under a second identity", page.id());
  record.published = true;
  record.identity = identity;
  record.tokens.assign(tokens.begin(), tokens.end());
  return page;
}

Ledger PagePool::ledger() const {
  Ledger ledger;
  ledger.capacity = memory_->capacity_bytes();
  ledger.slack = memory_->slack_bytes();
  ledger.evictable = evictable_bytes_ + evictable_pages_ * kPageHeaderBytes;
  const uint64_t headers_in_use = (used_pages_ + evictable_pages_) * kPageHeaderBytes;
  ledger.free = memory_->free_bytes() + (memory_->max_pages() * kPageHeaderBytes - headers_in_use);
  ledger.used = memory_->used_bytes() - evictable_bytes_ + used_pages_ * kPageHeaderBytes;
  return ledger;
}

uint64_t PagePool::page_bytes(bool with_sink) const {
  const kernels::PageLayout& layout = memory_->layout();
  const int count = with_sink ? layout.num_slabs() : layout.num_levels;
  uint64_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += layout.slab_bytes[i];
  return bytes;
}

void PagePool::add_reference(PageId id) {
  Record& record = records_[id];
  if (record.references++ > 0) return;
  if (record.published) unlink(id);
  ++used_pages_;
}

void PagePool::drop_reference(PageId id) {
  Record& record = records_[id];
  LOWKEY_CHECK(record.references > 0, "page {} returned twice", id);
  if (--record.references > 0) return;
  --used_pages_;
  if (record.published) {
    link_newest(id);
  } else {
    free_page(id);
  }
}

void PagePool::drop_tail(SlabId id) {
  memory_->tails().free(id);
  --used_tails_;
}

void PagePool::link_newest(PageId id) {
  Record& record = records_[id];
  record.older = newest_;
  record.newer = kNone;
  (newest_ == kNone ? oldest_ : records_[newest_].newer) = id;
  newest_ = id;
  ++evictable_pages_;
  evictable_bytes_ += page_bytes(record.has_sink);
}

void PagePool::unlink(PageId id) {
  Record& record = records_[id];
  (record.older == kNone ? oldest_ : records_[record.older].newer) = record.newer;
  (record.newer == kNone ? newest_ : records_[record.newer].older) = record.older;
  record.older = record.newer = kNone;
  --evictable_pages_;
  evictable_bytes_ -= page_bytes(record.has_sink);
}

bool PagePool::evict_oldest() {
  if (oldest_ == kNone) return false;
  const PageId id = oldest_;
  unlink(id);
  index_.erase(records_[id].identity);
  free_page(id);
  ++evictions_;
  return true;
}

void PagePool::free_page(PageId id) {
  Record& record = records_[id];
  const std::span<const SlabId> slabs = slabs_of(id);
  for (size_t i = 0; i < slabs.size(); ++i) memory_->slabs(static_cast<int>(i)).free(slabs[i]);
  record = Record{};
}

std::span<const SlabId> PagePool::slabs_of(PageId id) const {
  const Record& record = records_[id];
  const kernels::PageLayout& layout = memory_->layout();
  return std::span(record.slabs).first(record.has_sink ? layout.num_slabs() : layout.num_levels);
}

}  // namespace lowkey::kvstore
