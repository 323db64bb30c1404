// A block's queries and sums in the coordinates of a segment, and back.
#include <algorithm>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/page_tile.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd_ops.h"

namespace lowkey::kernels {

// Query rows of the block as [(row, query head of the group)][dim], times the softmax scale.
void CpuAttention::load_queries(const Block& block, HeadScratch& head) const {
  const SequenceSlice& slice = step_->sequences[block.sequence];
  const size_t n = static_cast<size_t>(group_) * dim_;
  head.mapped = kNoMap;
  grow(head.queries, static_cast<size_t>(queries_of(block)) * dim_);
  for (int slot = block.begin; slot < block.end; ++slot) {
    const size_t row = static_cast<size_t>(slice.first_row) + slot - slice.first_slot;
    simd::scale_row(step_->q.as<float>() + row * step_->q.cols + block.head * n, step_->scale,
                    head.queries.data() + (slot - block.begin) * n, static_cast<int>(n));
  }
  if (!rounds_) return;
  const size_t elements = static_cast<size_t>(queries_of(block)) * dim_;
  grow(head.rounded, elements);
  simd::f32_to_bf16_row(head.queries.data(), head.rounded.data(), elements);
}

void CpuAttention::prepare_segment(const Block& block, const Segment& segment, HeadScratch& head) const {
  const HeadMap& map = maps_.at(segment.map, block.head);
  FeatureQueries queries{.rows = head.queries.data(),
                         .stride = dim_,
                         .count = queries_of(block),
                         .soft_cap = step_->soft_cap,
                         .rounded = rounds_ ? head.rounded.data() : nullptr};
  if (step_->soft_cap != 0 && map.key_mean != nullptr) {
    grow(head.offsets, queries.count);
    for (int i = 0; i < queries.count; ++i)
      head.offsets[i] =
          simd::dot_row(head.queries.data() + static_cast<size_t>(i) * dim_, map.key_mean, dim_);
    queries.offsets = head.offsets.data();
  }
  if (map.key != nullptr) {
    const int stride = simd::tile_stride(map.head.key->dim);
    if (head.mapped != segment.map) {
      head.mapped = segment.map;
      grow(head.mapped_queries, static_cast<size_t>(queries.count) * stride);
      simd::multiply_tile({queries.rows, dim_, map.key, stride, head.mapped_queries.data(), stride,
                           queries.count, dim_, stride, /*accumulate=*/false});
    }
    queries.rows = head.mapped_queries.data();
    queries.rounded = nullptr;
    queries.stride = stride;
  }
  head.pages = &head.float_pages;
  if (rounds_ && Bf16Pages::can_read(map.head, segment.levels)) head.pages = &head.bf16_pages;
  CodePages& code_pages = head.code_pages[segment.levels - 1];
  if (code_pages.can_read(map.head, segment.levels)) head.pages = &code_pages;
  head.pages->prepare(map.head, segment.levels, queries);
}

PageRun CpuAttention::run_of(const Block& block, const Segment& segment, int split) const {
  const int skipped = skipped_of(block, segment), pages = pages_of(block, segment);
  const int first = (skipped / kSplitPages + split) * kSplitPages;
  PageRun run{.slabs = segment.slabs + static_cast<size_t>(first) * kMaxSlabs,
              .num_pages = std::min(kSplitPages, pages - first),
              .pages_after = std::max(0, pages - first - kSplitPages),
              .masked_tokens = first == 0 ? segment.masked_tokens : 0,
              .windowed = segment.own && step_->window > 0,
              .hidden = hidden_from(block, (segment.first_page + first) * page_tokens_),
              .group = group_,
              .skipped = std::max(0, skipped - first)};
  for (int page = 0; page < run.num_pages && segment.own; ++page)
    run.first_query[page] =
        std::max(0, (segment.first_page + first + page + 1) * page_tokens_ - block.begin) * group_;
  return run;
}

// From feature coordinates to the head's own, in place; the mean's part of the scores is the same for all
// tokens of the segment.
void CpuAttention::map_back(const Block& block, const Segment& segment, const AttentionState& state,
                            Scratch& scratch) const {
  const HeadMap& map = maps_.at(segment.map, block.head);
  const int queries = queries_of(block), stride = simd::tile_stride(dim_);
  for (int i = 0; i < queries && map.key_mean != nullptr && step_->soft_cap == 0; ++i) {
    state.maximum[i] += simd::dot_row(head_of(block, scratch).queries.data() + static_cast<size_t>(i) * dim_,
                                      map.key_mean, dim_);
  }
  if (map.value != nullptr) {
    float* sums = scratch.mapped_sums.data();
    simd::multiply_tile({state.acc, state.stride, map.value, stride, sums, stride, queries,
                         map.head.value->dim, stride, /*accumulate=*/false});
    for (int i = 0; i < queries; ++i)
      std::copy_n(sums + static_cast<size_t>(i) * stride, stride,
                  state.acc + static_cast<size_t>(i) * state.stride);
  }
  for (int i = 0; i < queries && map.value_mean != nullptr; ++i)
    simd::add_scaled_row(map.value_mean, state.sum[i], state.acc + static_cast<size_t>(i) * state.stride,
                         dim_);
}

}  // namespace lowkey::kernels
