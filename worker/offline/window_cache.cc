#include "worker/offline/window_cache.h"

#include "base/check.h"

namespace lowkey::worker {

kernels::SequenceSlice WindowCache::extend(int first_row, int count) {
  const int first = slots_;
  length_ += count;
  slots_ += count;
  pages_.grow(slots_ / layout().page_tokens);
  return {.first_row = first_row,
          .num_rows = count,
          .first_slot = first,
          .slabs = pages_.slabs(),
          .page_levels = pages_.page_levels(),
          .tail = tail_.get()};
}

void WindowCache::restart(int left) {
  LOWKEY_CHECK(left >= 0 && left < layout().page_tokens, "{} rows in a tail of {}", left,
               layout().page_tokens);
  slots_ = left;
  pages_.clear();
}

}  // namespace lowkey::worker
