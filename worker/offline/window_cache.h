// The cache of one sequence on one rank: its own pages and tail.
#pragma once

#include "kernels/ops/backend.h"
#include "worker/offline/plain_pages.h"

namespace lowkey::worker {

// Move-only; `layout` outlives it.
class WindowCache {
 public:
  // `read_levels`: of every page; 0: all.
  explicit WindowCache(const kernels::PageLayout& layout, int read_levels = 0)
      : pages_(layout, read_levels), tail_(plain_memory(layout.tail_bytes)) {}

  // The slice of the `count` rows that follow what was run before, the first of them row `first_row` of its
  // step. Its arrays live until the next call.
  kernels::SequenceSlice extend(int first_row, int count);
  int length() const { return length_; }  // tokens run so far
  const kernels::PageLayout& layout() const { return pages_.layout(); }

  // For recipes that move tokens to archived pages. Slots count the tokens that are here.
  int slots() const { return slots_; }
  std::byte* const* slabs() const { return pages_.slabs(); }
  std::byte* tail() { return tail_.get(); }
  // All tokens were moved, but for `left` that stand in the first rows of the tail.
  void restart(int left);

 private:
  PlainPages pages_;
  PlainMemory tail_;
  int length_ = 0;
  int slots_ = 0;
};

}  // namespace lowkey::worker
