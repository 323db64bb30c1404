// The write half of attend(): the step's K and V into tails and pages.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/cpu/page_encode.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels {

class ComputePool;

class CacheWriter {
 public:
  explicit CacheWriter(ComputePool& pool);

  // Stores the step's rows, rounded to the dtype, and encodes the pages they complete; `step` lives until
  // save_tails().
  void write(const AttentionStep& step);
  // Moves the rows of the last, incomplete pages to the tails, now that nobody reads the old rows.
  void save_tails();

  void compact(const Compaction& compaction);

  // Exact rows [page_tokens][head_dim] of a page that the step touches, between write() and save_tails().
  const std::byte* own_page(int sequence, Side side, int head, int page) const {
    return const_cast<CacheWriter*>(this)->own_page(sequence, side, head, page);
  }

 private:
  // A sequence's exact rows: the first page it touches has them in the tail, the following ones in own_rows_.
  struct OwnPages {
    int first = 0;
    int count = 0;
    int end_slot = 0;
    size_t offset = 0;  // bytes into own_rows_: [side][head][page after the first][page_tokens][head_dim]
  };

  std::byte* own_page(int sequence, Side side, int head, int page);
  void plan();
  template <class Function>
  void run_all(int count, const Function& task);
  void store_rows(int sequence, Side side, int head);
  void encode_pages(int sequence, Side side, int vector, simd::PageEncoder& encoder);

  ComputePool& pool_;
  std::vector<simd::PageEncoder> encoders_;  // of each thread
  const AttentionStep* step_ = nullptr;      // at hand
  size_t row_bytes_ = 0;
  std::vector<OwnPages> own_;
  std::vector<std::byte> own_rows_;
};

}  // namespace lowkey::kernels
