// Where the exact rows of pages to be encoded come from, and where their features are.
#pragma once

#include "kernels/cuda/encode_kernels.h"
#include "kernels/cuda/page_codes.h"

namespace lowkey::kernels::cuda {

// Exact rows of the pages that a step completes.
struct StepRows {
  StepView step;
  PageList list;

  __device__ const DeviceLayout& layout() const { return *step.layout; }
  __device__ int bank() const { return step.bank; }
  __device__ int size() const { return list.size(); }
  __device__ bool is_first(int index) const { return list.pages[index].page == 0; }
  __device__ float row(int index, Side side, int head, int token, int f) const {
    const DevicePage& page = list.pages[index];
    return exact_value(step, step.sequences[page.sequence], side, head,
                       page.page * step.layout->page_tokens + token, f);
  }
  __device__ std::byte* const* slabs(int index) const {
    const DevicePage& page = list.pages[index];
    return step.sequences[page.sequence].slabs + int64_t{page.page} * kMaxSlabs;
  }
};

// Row of a slot of exact pages or the tail.
__device__ __forceinline__ float source_value(const CompactionView& view, Side side, int head, int slot,
                                              int f) {
  const DeviceLayout& from = *view.from;
  const int page = slot / from.page_tokens, token = slot % from.page_tokens;
  if (page == view.num_slots / from.page_tokens) {
    return load_value(view.tail + rows_of(from, view.bank, side, head).tail_offset, from.dtype,
                      int64_t{token} * from.head_dim + f);
  }
  const DeviceVector& vector = vector_of(from, view.bank, side, head);
  const int feature = (head - vector.layout.head) * from.head_dim + f;
  return read_feature(from, vector, view.slabs + int64_t{page} * kMaxSlabs, from.num_levels, token, feature);
}

// Kept rows, page by page.
struct KeptRows {
  CompactionView view;
  int first_page, num_pages;

  __device__ const DeviceLayout& layout() const { return *view.to; }
  __device__ int bank() const { return view.to_bank; }
  __device__ int size() const { return num_pages; }
  __device__ bool is_first(int) const { return true; }
  __device__ float row(int index, Side side, int head, int token, int f) const {
    const int kept = (first_page + index) * view.to->page_tokens + token;
    return source_value(view, side, head, view.keep[int64_t{head} * view.num_kept + kept], f);
  }
  __device__ std::byte* const* slabs(int index) const {
    return view.to_slabs + int64_t{first_page + index} * kMaxSlabs;
  }
};

template <class Rows>
__device__ const DeviceVector& vector_at(const Rows& rows, int index) {
  const DeviceLayout& layout = rows.layout();
  return layout.vectors[rows.bank() * 2 * (layout.num_kv_heads / layout.join) + index];
}

__device__ __forceinline__ float* features_at(const FeatureBlock& features, int page, int vector,
                                              int num_vectors, int page_tokens, int token) {
  return features.data + ((int64_t{page} * num_vectors + vector) * page_tokens + token) * features.stride;
}

}  // namespace lowkey::kernels::cuda
