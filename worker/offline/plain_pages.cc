#include "worker/offline/plain_pages.h"

#include <cstring>

#include "base/check.h"

namespace lowkey::worker {

using kernels::kMaxSlabs;

// Cleared: what no kernel has written is copied with the rest of a page.
PlainMemory plain_memory(size_t bytes) {
  const size_t rounded = (bytes + 63) / 64 * 64;
  auto* data = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
  LOWKEY_CHECK(data != nullptr || rounded == 0, "out of memory: {} bytes for a page", rounded);
  if (rounded > 0) std::memset(data, 0, rounded);
  return PlainMemory(data);
}

void PlainPages::grow(int pages) {
  while (size() < pages) {
    for (int slab = 0; slab < kMaxSlabs; ++slab) {
      const size_t bytes = slab_bytes(slabs_.size());
      slabs_.push_back(bytes > 0 ? plain_memory(bytes) : nullptr);
      views_.push_back(slabs_.back().get());
    }
    page_levels_.push_back(static_cast<uint8_t>(read_levels_));
  }
}

void PlainPages::clear() {
  slabs_.clear();
  views_.clear();
  page_levels_.clear();
}

size_t PlainPages::slab_bytes(size_t index) const {
  const bool first_page = index < static_cast<size_t>(kMaxSlabs);
  const int slab = static_cast<int>(index % kMaxSlabs);
  return slab < (first_page ? layout_->num_slabs() : layout_->num_levels) ? layout_->slab_bytes[slab] : 0;
}

}  // namespace lowkey::worker
