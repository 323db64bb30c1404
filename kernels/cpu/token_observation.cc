#include "kernels/cpu/token_observation.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd_ops.h"

namespace lowkey::kernels {
namespace {

constexpr int kBlockRows = 64;  // their queries and scores stay in the L1 cache

}  // namespace

void TokenObservation::run(const AttentionStep& step, const CacheWriter& writer, const RowSoftmax& softmax,
                           bool rounded, int sequence, int head, int first_page) {
  rounded_ = rounded;
  const SequenceSlice& slice = step.sequences[sequence];
  const int tokens = step.layout->page_tokens, end_slot = slice.first_slot + slice.num_rows;
  const int end_page = std::min(ceil_div(end_slot, tokens), first_page + kObservedPages);
  add_norms(step, writer, sequence, head, first_page, end_page);
  if (slice.observer->column_sums == nullptr && slice.observer->window_sums == nullptr) return;
  load_keys(step, writer, sequence, head, first_page, end_page);
  for (int begin = std::max(slice.first_slot, first_page * tokens); begin < end_slot; begin += kBlockRows) {
    add_block(step, softmax, slice, head, first_page, end_page, begin,
              std::min(begin + kBlockRows, end_slot));
  }
}

void TokenObservation::load_keys(const AttentionStep& step, const CacheWriter& writer, int sequence, int head,
                                 int first_page, int end_page) {
  const PageLayout& layout = *step.layout;
  const SequenceSlice& slice = step.sequences[sequence];
  const VectorLayout& vector = layout.vector(step.bank, Side::kKey, head);
  const int stride = simd::tile_stride(layout.page_tokens);
  // A page is decoded with the other heads of its stored vector: this head's features are some of the tile's.
  const size_t tile = simd::tile_floats(Side::kKey, layout.page_tokens, vector.dim);
  grow(tiles_, kObservedPages * tile);
  for (int page = first_page; page < end_page; ++page) {
    float* keys = tiles_.data() + (page - first_page) * tile;
    const int missing = (page + 1) * layout.page_tokens - slice.first_slot - slice.num_rows;
    if (page < slice.first_slot / layout.page_tokens) {
      simd::decode_tile(layout, vector, {slice.slabs + static_cast<size_t>(page) * kMaxSlabs},
                        slice.page_levels[page], keys, scratch_);
    } else {
      keys += static_cast<size_t>(head - vector.head) * layout.head_dim * stride;
      if (missing > 0) std::fill_n(keys, static_cast<size_t>(layout.head_dim) * stride, 0.0f);
      simd::load_tile(Side::kKey, writer.own_page(sequence, Side::kKey, head, page), layout.dtype,
                      layout.page_tokens - std::max(0, missing), layout.page_tokens, layout.head_dim, keys);
    }
  }
}

// As the attention had them.
void TokenObservation::load_queries(const AttentionStep& step, size_t first_row, int rows, int head) {
  const int queries = step.num_q_heads / step.layout->num_kv_heads * step.layout->head_dim;
  grow(queries_, static_cast<size_t>(kBlockRows) * queries);
  grow(rounded_queries_, queries);
  for (int i = 0; i < rows; ++i) {
    float* row = queries_.data() + static_cast<size_t>(i) * queries;
    simd::scale_row(step.q.as<float>() + (first_row + i) * step.q.cols + static_cast<size_t>(head) * queries,
                    step.scale, row, queries);
    if (!rounded_) continue;
    simd::f32_to_bf16_row(row, rounded_queries_.data(), queries);
    simd::bf16_to_f32_row(rounded_queries_.data(), row, queries);
  }
}

// Rows of slots [begin, end), in order, on the pages at hand.
void TokenObservation::add_block(const AttentionStep& step, const RowSoftmax& softmax,
                                 const SequenceSlice& slice, int head, int first_page, int end_page,
                                 int begin, int end) {
  const PageLayout& layout = *step.layout;
  const TokenObserver& observer = *slice.observer;
  const VectorLayout& vector = layout.vector(step.bank, Side::kKey, head);
  const int dim = layout.head_dim, tokens = layout.page_tokens, stride = simd::tile_stride(tokens);
  const int group = step.num_q_heads / layout.num_kv_heads, rows = end - begin;
  const size_t first_row = static_cast<size_t>(slice.first_row) + begin - slice.first_slot;
  const size_t columns = (static_cast<size_t>(step.bank) * layout.num_kv_heads + head) * observer.capacity;
  grow(scores_, static_cast<size_t>(kBlockRows) * group * stride);
  load_queries(step, first_row, rows, head);
  const size_t tile = simd::tile_floats(Side::kKey, tokens, vector.dim);
  const size_t feature = static_cast<size_t>(head - vector.head) * dim;
  for (int page = first_page; page < end_page && page * tokens < end; ++page) {
    simd::multiply_tile({queries_.data(), dim, tiles_.data() + (page - first_page) * tile + feature * stride,
                         stride, scores_.data(), stride, rows * group, dim, stride, /*accumulate=*/false});
    const size_t column = columns + static_cast<size_t>(page) * tokens;
    for (int i = std::max(0, page * tokens - begin); i < rows; ++i) {
      const size_t query = (first_row + i) * step.num_q_heads + static_cast<size_t>(head) * group;
      const bool window = observer.window_sums != nullptr && begin + i >= observer.window_first;
      simd::add_weights({scores_.data() + static_cast<size_t>(i) * group * stride, stride, group,
                         std::min(tokens, begin + i + 1 - page * tokens), softmax.maximum.data() + query,
                         softmax.inverse_sum.data() + query,
                         observer.column_sums == nullptr ? nullptr : observer.column_sums + column,
                         window ? observer.window_sums + column : nullptr});
    }
  }
}

void TokenObservation::add_norms(const AttentionStep& step, const CacheWriter& writer, int sequence, int head,
                                 int first_page, int end_page) {
  const PageLayout& layout = *step.layout;
  const SequenceSlice& slice = step.sequences[sequence];
  const TokenObserver& observer = *slice.observer;
  if (observer.key_norms == nullptr) return;
  const int dim = layout.head_dim, tokens = layout.page_tokens;
  float* norms =
      observer.key_norms + (static_cast<size_t>(step.bank) * layout.num_kv_heads + head) * observer.capacity;
  grow(row_, dim);
  for (int slot = std::max(slice.first_slot, first_page * tokens);
       slot < std::min(slice.first_slot + slice.num_rows, end_page * tokens); ++slot) {
    const std::byte* row = writer.own_page(sequence, Side::kKey, head, slot / tokens) +
                           static_cast<size_t>(slot % tokens) * dim * dtype_bytes(layout.dtype);
    if (layout.dtype == DType::kF32) {
      std::memcpy(row_.data(), row, dim * sizeof(float));
    } else {
      simd::bf16_to_f32_row(reinterpret_cast<const uint16_t*>(row), row_.data(), dim);
    }
    norms[slot] = std::sqrt(simd::dot_row(row_.data(), row_.data(), dim));
  }
}

}  // namespace lowkey::kernels
