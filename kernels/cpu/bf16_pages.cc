#include "kernels/cpu/bf16_pages.h"

#include <algorithm>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd_ops.h"

namespace lowkey::kernels {

bool Bf16Pages::can_read(const EncodedHead& head, int levels) {
  const PageLayout& layout = *head.layout;
  return layout.dtype == DType::kBf16 && is_in_pairs(layout, *head.key) && is_in_pairs(layout, *head.value) &&
         pairs_of(layout, *head.key).level < levels && pairs_of(layout, *head.value).level < levels;
}

void Bf16Pages::prepare(const EncodedHead& head, int, const FeatureQueries& queries) {
  head_ = head;
  queries_ = queries;
  const int dim = head.key->dim;
  grow(begin_, queries.count);
  grow(end_, queries.count);
  rounded_ = queries.rounded;
  rounded_stride_ = queries.stride;
  if (rounded_ != nullptr) return;
  rounded_stride_ = dim;
  grow(own_rounded_, static_cast<size_t>(queries.count) * dim);
  for (int row = 0; row < queries.count; ++row) {
    simd::f32_to_bf16_row(queries.rows + static_cast<size_t>(row) * queries.stride,
                          own_rounded_.data() + static_cast<size_t>(row) * dim, dim);
  }
  rounded_ = own_rounded_.data();
}

Bf16Tile Bf16Pages::tile(std::byte* const* slabs) const {
  const Plane &key = pairs_of(*head_.layout, *head_.key), &value = pairs_of(*head_.layout, *head_.value);
  return {reinterpret_cast<const uint16_t*>(slabs[key.level] + key.offset),
          reinterpret_cast<const uint16_t*>(slabs[value.level] + value.offset)};
}

void Bf16Pages::find_ranges(const PageRun& run, int page, int end, int first, int last) {
  const int tokens = head_.layout->page_tokens;
  const int masked = page == 0 ? run.masked_tokens : 0;
  int behind = page;  // pages before it are seen by the row
  for (int row = first; row < last; ++row) {
    while (behind < end && run.first_query[behind] <= row) ++behind;
    begin_[row] = std::max(masked, run.hidden_tokens(page, row, tokens));
    end_[row] = (behind - page) * tokens;
  }
}

void Bf16Pages::see(const PageRun& run, const AttentionState& state) {
  const int tokens = head_.layout->page_tokens, together = stretch();
  Bf16Tile tiles[kMaxRunPages];
  for (int page = 0, end; page < run.num_pages; page = end) {
    end = std::min(run.num_pages, page + together);
    const int first = run.first_query[page], last = run.end_query(end - 1, tokens, queries_.count);
    if (end <= run.skipped || first >= last) continue;
    for (int p = page; p < end; ++p)
      tiles[p - page] = p < run.skipped ? Bf16Tile() : tile(run.slabs + static_cast<size_t>(p) * kMaxSlabs);
    find_ranges(run, page, end, first, last);
    const bool more = end < run.num_pages + run.pages_after;
    attend_pairs({.tiles = tiles,
                  .num_tiles = end - page,
                  .tokens = tokens,
                  .key_dim = head_.key->dim,
                  .value_dim = head_.value->dim,
                  .next = more ? tile(run.slabs + static_cast<size_t>(end) * kMaxSlabs) : Bf16Tile(),
                  .queries = rounded_ + static_cast<size_t>(first) * rounded_stride_,
                  .query_stride = rounded_stride_,
                  .rows = last - first,
                  .begin = begin_.data() + first,
                  .end = end_.data() + first,
                  .soft_cap = queries_.soft_cap,
                  .offsets = queries_.offsets == nullptr ? nullptr : queries_.offsets + first,
                  .state = {state.maximum + first, state.sum + first,
                            state.acc + static_cast<size_t>(first) * state.stride, state.stride}},
                 scratch_);
  }
}

}  // namespace lowkey::kernels
