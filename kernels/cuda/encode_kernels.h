// Writing the cache: exact rows -> features -> codes, byte for byte what kernels/page/page_codec.h writes.
// Two launches per batch of pages: map_rows fills features, quantize turns them into planes, norms and
// scales.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/step_view.h"

namespace lowkey::kernels::cuda {

// Features of some pages of one bank: [page][vector of both sides][page_tokens][stride], f32.
struct FeatureBlock {
  float* data = nullptr;
  int stride = 0;
};

// Kept tokens of a sequence's exact pages and tail (Compaction); pointers into device memory.
struct CompactionView {
  const DeviceLayout* from = nullptr;
  const DeviceLayout* to = nullptr;
  int bank = 0, to_bank = 0;
  std::byte* const* slabs = nullptr;
  std::byte* const* to_slabs = nullptr;
  std::byte* tail = nullptr;
  int num_slots = 0;
  const int32_t* keep = nullptr;  // [head][num_kept]
  int num_kept = 0;
};

// `pages`: completed in this step, in device memory.
void launch_map_step_rows(cudaStream_t stream, const StepView& step, const LayoutShape& layout,
                          const PageList& pages, const FeatureBlock& features);
void launch_quantize_step(cudaStream_t stream, const StepView& step, const LayoutShape& layout,
                          const PageList& pages, const FeatureBlock& features);
// The exact first tokens of those of `pages` that are page 0 of their sequence.
void launch_write_sinks(cudaStream_t stream, const StepView& step, const LayoutShape& layout,
                        const PageList& pages);
// The rows of each sequence's incomplete page that this step brings.
void launch_write_tails(cudaStream_t stream, const StepView& step);

// Pages [first_page, first_page + num_pages) of what is kept.
void launch_map_kept_rows(cudaStream_t stream, const CompactionView& view, const LayoutShape& to,
                          int first_page, int num_pages, const FeatureBlock& features);
void launch_quantize_kept(cudaStream_t stream, const CompactionView& view, const LayoutShape& to,
                          int first_page, int num_pages, const FeatureBlock& features);
void launch_write_kept_sink(cudaStream_t stream, const CompactionView& view, const LayoutShape& to);
// What is left becomes the tail's first rows, through `rows` [side][head][left][head_dim] of the dtype.
void launch_write_kept_tail(cudaStream_t stream, const CompactionView& view, const LayoutShape& from,
                            int first, int left, std::byte* rows);

}  // namespace lowkey::kernels::cuda
