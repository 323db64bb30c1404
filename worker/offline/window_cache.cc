#include "worker/offline/window_cache.h"

#include <cstring>

#include "base/check.h"

namespace lowkey::worker {

using kernels::kMaxSlabs;

WindowCache::WindowCache(const kernels::PageLayout& layout)
    : layout_(&layout), tail_(memory(layout.tail_bytes)) {}

WindowCache WindowCache::clone() const {
  WindowCache copy(*layout_);
  copy.length_ = length_;
  std::memcpy(copy.tail_.get(), tail_.get(), layout_->tail_bytes);
  while (copy.slabs_.size() < slabs_.size()) copy.add_page();
  for (size_t i = 0; i < slabs_.size(); ++i)
    if (const size_t bytes = slab_bytes(i)) std::memcpy(copy.slabs_[i].get(), slabs_[i].get(), bytes);
  return copy;
}

kernels::SequenceSlice WindowCache::extend(int first_row, int count) {
  const int first = length_;
  length_ += count;
  while (static_cast<int>(slabs_.size()) < length_ / layout_->page_tokens * kMaxSlabs) add_page();
  return {.first_row = first_row,
          .num_rows = count,
          .first_slot = first,
          .slabs = slab_views_.data(),
          .levels = layout_->num_levels,
          .tail = tail_.get()};
}

// Cleared, so that a clone copies nothing undefined.
WindowCache::Memory WindowCache::memory(size_t bytes) {
  const size_t rounded = (bytes + 63) / 64 * 64;
  auto* data = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
  LOWKEY_CHECK(data != nullptr, "out of memory: {} bytes for a page", rounded);
  std::memset(data, 0, rounded);
  return Memory(data);
}

size_t WindowCache::slab_bytes(size_t index) const {
  const bool first_page = index < static_cast<size_t>(kMaxSlabs);
  const int slab = static_cast<int>(index % kMaxSlabs);
  return slab < (first_page ? layout_->num_slabs() : layout_->num_levels) ? layout_->slab_bytes[slab] : 0;
}

void WindowCache::add_page() {
  for (int slab = 0; slab < kMaxSlabs; ++slab) {
    const size_t bytes = slab_bytes(slabs_.size());
    slabs_.push_back(bytes > 0 ? memory(bytes) : nullptr);
    slab_views_.push_back(slabs_.back().get());
  }
}

}  // namespace lowkey::worker
