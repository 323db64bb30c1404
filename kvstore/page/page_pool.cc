#include "kvstore/page/page_pool.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace lowkey::kvstore {

using kernels::kPageHeaderBytes;

namespace {

// Of each upper level, given up for one slab: neighbours in age that have so many together leave one free.
// Where they lie scattered, a whole page goes instead, which has slabs of every size.
constexpr uint64_t kMostDroppedSuperblocks = 2;

}  // namespace

PagePool::PagePool(PageMemory& memory)
    : memory_(&memory), records_(memory.max_pages()), idle_(memory.max_pages()) {}

PagePool::~PagePool() {
  LOWKEY_CHECK(used_pages_ == 0 && used_tails_ == 0, "{} pages and {} tails never returned", used_pages_,
               used_tails_);
  on_change = nullptr;
  evict_all();
}

void PagePool::evict_all() {
  while (evict_first()) {
  }
}

std::optional<SlabId> PagePool::allocate_slab(SlabPool& pool) {
  std::optional<SlabId> slab = pool.allocate();
  // Top levels are of other sizes: they help once a whole superblock of them is free.
  const uint64_t most =
      kMostDroppedSuperblocks * (memory_->layout().num_levels - 1) * memory_->superblock_bytes();
  const uint64_t enough = evictable_bytes_ - std::min(evictable_bytes_, most);
  while (!slab && relieve(evictable_bytes_ > enough)) slab = pool.allocate();
  return slab;
}

// slabs[from, to), all or none.
bool PagePool::allocate_levels(std::span<SlabId> slabs, int from, int to) {
  for (int i = from; i < to; ++i) {
    const std::optional<SlabId> slab = allocate_slab(memory_->slabs(i));
    if (!slab) {
      while (i-- > from) memory_->slabs(i).free(std::exchange(slabs[i], kNoSlab));
      return false;
    }
    slabs[i] = *slab;
  }
  return true;
}

std::optional<PageRef> PagePool::allocate(bool with_sink, int levels) {
  const int all = memory_->layout().num_levels, count = levels == 0 ? all : levels;
  LOWKEY_CHECK(count >= 1 && count <= all, "{} of {} levels", levels, all);
  const bool has_sink = with_sink && memory_->layout().num_slabs() > all;
  std::array<SlabId, kernels::kMaxSlabs> slabs;
  slabs.fill(kNoSlab);
  if (has_sink && !allocate_levels(slabs, all, all + 1)) return std::nullopt;
  if (!allocate_levels(slabs, 0, count)) {
    if (has_sink) memory_->slabs(all).free(slabs[all]);
    return std::nullopt;
  }
  Record& record = records_[slabs[0]];
  LOWKEY_CHECK(!record.allocated, "page {} allocated twice", slabs[0]);
  record = Record{.slabs = slabs,
                  .version = ++versions_,
                  .held = static_cast<uint8_t>(count),
                  .levels = static_cast<uint8_t>(count),
                  .allocated = true,
                  .has_sink = has_sink};
  return PageRef(this, slabs[0]);
}

bool PagePool::grow(const PageRef& page, int levels) {
  Record& record = records_[page.id()];
  LOWKEY_CHECK(levels <= memory_->layout().num_levels, "{} of {} levels", levels,
               memory_->layout().num_levels);
  if (levels <= record.held) return true;
  if (!allocate_levels(record.slabs, record.held, levels)) return false;
  record.held = static_cast<uint8_t>(levels);
  record.version = ++versions_;
  return true;
}

void PagePool::trim(const PageRef& page) {
  const Record& record = records_[page.id()];
  LOWKEY_CHECK(record.levels > 0, "page {} has nothing to read", page.id());
  if (record.levels < record.held) free_levels(page.id(), record.levels);
}

void PagePool::set_levels(const PageRef& page, int levels, bool lossy) {
  Record& record = records_[page.id()];
  LOWKEY_CHECK(levels >= 0 && levels <= record.held && (levels > 0 || !record.published),
               "page {}: {} levels to be read of {}", page.id(), levels, record.held);
  record.levels = static_cast<uint8_t>(levels);
  record.lossy = lossy;
  record.version = ++versions_;
  ++level_changes_;
}

void PagePool::drop_level(PageId page) {
  LOWKEY_CHECK(can_drop_level(page), "page {}: {} of {} levels", page, records_[page].levels,
               records_[page].held);
  const bool idle = records_[page].references == 0;
  if (idle) evictable_bytes_ -= held_bytes(records_[page]);
  free_levels(page, records_[page].held - 1);
  if (idle) evictable_bytes_ += held_bytes(records_[page]);
  ++(idle ? idle_level_drops_ : in_use_level_drops_);
  ++level_changes_;
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

bool PagePool::is_whole(const Hash128& identity) const {
  const auto found = index_.find(identity);
  if (found == index_.end()) return false;
  const Record& record = records_[found->second];
  return record.levels == memory_->layout().num_levels && !record.lossy;
}

PageRef PagePool::publish(const PageRef& page, const Hash128& identity, std::span<const int32_t> tokens,
                          uint64_t first_token) {
  const auto [found, inserted] = index_.try_emplace(identity, page.id());
  if (!inserted) {
    // A different page under the same hash stays what it was; ours remains private.
    const PageId other = found->second;
    if (!std::ranges::equal(records_[other].tokens, tokens)) return page;
    if (other == page.id() || !is_better(records_[page.id()], records_[other])) return PageRef(this, other);
    unpublish(other);
    found->second = page.id();
  }
  Record& record = records_[page.id()];
  LOWKEY_CHECK(record.levels >= 1, "page {} published with nothing to read", page.id());
  LOWKEY_CHECK(!record.published, "page {} published under a second identity", page.id());
  record.published = true;
  record.identity = identity;
  record.tokens.assign(tokens.begin(), tokens.end());
  record.first_token = first_token;
  if (inserted && on_change) on_change(identity, true);
  return page;
}

bool PagePool::is_better(const Record& a, const Record& b) const {
  const auto rank = [&](const Record& record) {
    const bool full = !record.lossy && record.levels == memory_->layout().num_levels;
    return std::tuple(full, record.levels, !record.lossy);
  };
  return rank(a) > rank(b);
}

// Another page takes its place in the index.
void PagePool::unpublish(PageId id) {
  Record& record = records_[id];
  if (record.references == 0) {
    remove_idle(id);
    return free_page(id);
  }
  record.published = record.stored = false;
  record.tokens.clear();
}

std::vector<Hash128> PagePool::identities() const {
  std::vector<Hash128> all;
  all.reserve(index_.size());
  for (const auto& [identity, page] : index_) all.push_back(identity);
  return all;
}

void PagePool::set_stored(const Hash128& identity, bool stored) {
  const auto found = index_.find(identity);
  if (found == index_.end() || records_[found->second].stored == stored) return;
  records_[found->second].stored = stored;
  if (records_[found->second].references == 0) idle_.set_stored(found->second, stored);
}

void PagePool::forget_stored() {
  for (Record& record : records_) record.stored = false;
  idle_.forget_stored();
}

std::vector<PagePool::Unstored> PagePool::unstored(PageId* next, size_t most) const {
  std::vector<Unstored> found;
  PageId& id = *next;
  for (; id < records_.size() && found.size() < most; ++id) {
    const Record& record = records_[id];
    if (record.published && !record.stored && !record.lossy)
      found.push_back({id, record.identity, record.first_token});
  }
  return found;
}

Ledger PagePool::ledger() const {
  Ledger ledger;
  ledger.capacity = memory_->capacity_bytes();
  ledger.slack = memory_->slack_bytes();
  ledger.evictable = evictable_bytes_ + evictable_pages() * kPageHeaderBytes;
  const uint64_t headers_in_use = (used_pages_ + evictable_pages()) * kPageHeaderBytes;
  ledger.free = memory_->free_bytes() + (memory_->max_pages() * kPageHeaderBytes - headers_in_use);
  ledger.used = memory_->used_bytes() - evictable_bytes_ + used_pages_ * kPageHeaderBytes;
  return ledger;
}

uint64_t PagePool::page_bytes(bool with_sink, int levels) const {
  const kernels::PageLayout& layout = memory_->layout();
  uint64_t bytes = with_sink ? layout.slab_bytes[layout.sink_slab()] : 0;
  for (int level = 0; level < (levels == 0 ? layout.num_levels : levels); ++level)
    bytes += layout.slab_bytes[level];
  return bytes;
}

void PagePool::add_reference(PageId id) {
  Record& record = records_[id];
  if (record.references++ > 0) return;
  if (record.published) remove_idle(id);
  ++used_pages_;
}

void PagePool::drop_reference(PageId id) {
  Record& record = records_[id];
  LOWKEY_CHECK(record.references > 0, "page {} returned twice", id);
  if (--record.references > 0) return;
  --used_pages_;
  if (!record.published) return free_page(id);
  if (record.levels < record.held) free_levels(id, record.levels);
  add_idle(id);
}

void PagePool::drop_tail(SlabId id) {
  memory_->tails().free(id);
  --used_tails_;
}

void PagePool::add_idle(PageId id) {
  idle_.add(id, records_[id].stored);
  evictable_bytes_ += held_bytes(records_[id]);
}

void PagePool::remove_idle(PageId id) {
  idle_.remove(id);
  evictable_bytes_ -= held_bytes(records_[id]);
}

bool PagePool::relieve(bool by_levels) {
  return (by_levels && pressure_.drop_levels && drop_idle_level()) || evict_first();
}

bool PagePool::drop_idle_level() {
  const auto page =
      idle_.first_droppable([&](PageId id) { return records_[id].levels > pressure_.min_levels; });
  if (page) drop_level(*page);
  return page.has_value();
}

bool PagePool::evict_first() {
  const std::optional<PageId> page = idle_.first();
  if (!page) return false;
  const Hash128 identity = records_[*page].identity;
  remove_idle(*page);
  index_.erase(identity);
  free_page(*page);
  ++evictions_;
  if (on_change) on_change(identity, false);
  return true;
}

void PagePool::free_page(PageId id) {
  Record& record = records_[id];
  const int all = memory_->layout().num_levels;
  if (record.has_sink) memory_->slabs(all).free(record.slabs[all]);
  free_levels(id, 0);
  record = Record{};
}

void PagePool::free_levels(PageId id, int from) {
  Record& record = records_[id];
  for (int level = from; level < record.held; ++level)
    memory_->slabs(level).free(std::exchange(record.slabs[level], kNoSlab));
  record.held = static_cast<uint8_t>(from);
  record.levels = std::min(record.levels, record.held);
  record.version = ++versions_;
}

uint64_t PagePool::held_bytes(const Record& record) const {
  return page_bytes(record.has_sink, record.held);
}

std::span<const SlabId> PagePool::slabs_of(PageId id) const {
  const Record& record = records_[id];
  const kernels::PageLayout& layout = memory_->layout();
  return std::span(record.slabs).first(record.has_sink ? layout.num_slabs() : layout.num_levels);
}

}  // namespace lowkey::kvstore
