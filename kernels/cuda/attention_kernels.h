// Attention, the plain kernels: every format of a page, any number of rows, in f32. Where a format has a fast
// kernel (decode_attention.h, prefill_attention.h), that one takes the items; the others always run.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/step_view.h"

namespace lowkey::kernels::cuda {

// Largest vectors and numbers of tokens of a step, for shared memory.
struct StepExtents {
  int max_dim = 0;       // features of any stored vector
  int exact_tokens = 0;  // that a row sees exact: its page and sinks
  int max_states = 0;    // partial results of a row under one head
};

// One partial result per item.
void launch_attend_pages(cudaStream_t stream, const StepView& step, const ItemList& items,
                         const StepExtents& extents, const Partials& partials);

// Merges each row's partial results in their order, maps them back, adds what it sees exact, and stores the
// output. `softmax`: [row][query head][maximum, 1 / sum], or null. `write_tails`: then does what
// launch_write_tails() does. REQUIRES with it: every sequence has one row, so that nobody else reads its
// tail.
void launch_finish_rows(cudaStream_t stream, const StepView& step, const StepExtents& extents,
                        const Partials& partials, float* softmax, bool write_tails);

// TokenObserver of one sequence; pointers into device memory.
struct ObserverView {
  int sequence = 0;
  int capacity = 0;
  float* column_sums = nullptr;
  float* window_sums = nullptr;
  int window_first = 0;
  float* key_norms = nullptr;
};
void launch_observe(cudaStream_t stream, const StepView& step, const ObserverView& observer, int num_slots,
                    int num_kv_heads, const float* softmax);

}  // namespace lowkey::kernels::cuda
