// The second pass that a TokenObserver costs: once a row's softmax is known, its scores are computed again,
// page by page, and its weights go to the sums of their slots. No score matrix is kept. A slot's sums grow
// row by row in ascending order within one task, so their bits depend neither on chunking nor on threads.
#pragma once

#include <vector>

#include "kernels/cpu/cache_writer.h"
#include "kernels/cpu/page_tile.h"
#include "kernels/ops/backend.h"

namespace lowkey::kernels {

inline constexpr int kObservedPages = 8;  // of a task: their keys as tiles fit the L2 cache

// The softmax of every query row of the step, [rows][num_q_heads].
struct RowSoftmax {
  std::vector<float> maximum, inverse_sum;
};

// Of one thread: keeps its scratch between calls.
class TokenObservation {
 public:
  // Pages [first_page, first_page + kObservedPages), as far as the sequence has them, under one KV head.
  // rounded: the softmax is of queries rounded to bf16. REQUIRES: exact pages.
  void run(const AttentionStep& step, const CacheWriter& writer, const RowSoftmax& softmax, bool rounded,
           int sequence, int head, int first_page);

 private:
  void load_keys(const AttentionStep& step, const CacheWriter& writer, int sequence, int head, int first_page,
                 int end_page);
  void load_queries(const AttentionStep& step, size_t first_row, int rows, int head);
  void add_block(const AttentionStep& step, const RowSoftmax& softmax, const SequenceSlice& slice, int head,
                 int first_page, int end_page, int begin, int end);
  void add_norms(const AttentionStep& step, const CacheWriter& writer, int sequence, int head, int first_page,
                 int end_page);

  std::vector<float> tiles_, queries_, scores_, row_;
  std::vector<uint16_t> rounded_queries_;
  bool rounded_ = false;
  simd::TileScratch scratch_;
};

}  // namespace lowkey::kernels
