// Pages of one layout in plain memory: no pool, no budget, nobody to share with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/page/page_layout.h"

namespace lowkey::worker {

// 64-byte aligned, zeroed.
struct FreePlain {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using PlainMemory = std::unique_ptr<std::byte, FreePlain>;
PlainMemory plain_memory(size_t bytes);

// Move-only; `layout` outlives it.
class PlainPages {
 public:
  // `read_levels`: of every page, when it is read; 0: all.
  explicit PlainPages(const kernels::PageLayout& layout, int read_levels = 0)
      : layout_(&layout), read_levels_(read_levels == 0 ? layout.num_levels : read_levels) {}

  const kernels::PageLayout& layout() const { return *layout_; }
  int size() const { return static_cast<int>(slabs_.size()) / kernels::kMaxSlabs; }
  void grow(int pages);  // to at least so many; invalidates slabs()
  void clear();
  // [page * kMaxSlabs + slab], null where a page has no such slab: only page 0 has a sink.
  std::byte* const* slabs() const { return views_.data(); }
  const uint8_t* page_levels() const { return page_levels_.data(); }  // [page], all the same

 private:
  size_t slab_bytes(size_t index) const;

  const kernels::PageLayout* layout_;
  int read_levels_;
  std::vector<PlainMemory> slabs_;
  std::vector<std::byte*> views_;  // the same
  std::vector<uint8_t> page_levels_;
};

}  // namespace lowkey::worker
