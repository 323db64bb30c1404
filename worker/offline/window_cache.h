// The cache of one sequence on one rank, in plain memory: no pool, no budget, nobody to share with.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/ops/backend.h"

namespace lowkey::worker {

// Move-only; `layout` outlives it.
class WindowCache {
 public:
  explicit WindowCache(const kernels::PageLayout& layout);

  // Another one of equal content, which grows apart from this one.
  WindowCache clone() const;

  // The slice of the `count` rows that follow what was run before, the first of them row `first_row` of its
  // step. Its arrays live until the next call.
  kernels::SequenceSlice extend(int first_row, int count);
  int length() const { return length_; }
  const kernels::PageLayout& layout() const { return *layout_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  using Memory = std::unique_ptr<std::byte, Free>;

  static Memory memory(size_t bytes);
  size_t slab_bytes(size_t index) const;  // of slabs_[index]; 0: the page has no such slab
  void add_page();

  const kernels::PageLayout* layout_;
  int length_ = 0;
  std::vector<Memory> slabs_;           // [page * kMaxSlabs + slab]
  std::vector<std::byte*> slab_views_;  // the same
  Memory tail_;
};

}  // namespace lowkey::worker
