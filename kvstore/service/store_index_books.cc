// The books of a store: bytes by state, and which pages can give way.
#include "base/check.h"
#include "kvstore/service/store_index.h"

namespace lowkey::kvstore {

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
