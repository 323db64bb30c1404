#include "kernels/cpu/float_pages.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/scratch.h"

namespace lowkey::kernels {
namespace {

constexpr int kPrefetchPages = 1;  // ahead of the one that is read

}  // namespace

void FloatPages::prepare(const EncodedHead& head, int levels, const FeatureQueries& queries) {
  head_ = head;
  levels_ = levels;
  queries_ = queries;
  full_keys_ = simd::is_full_bf16(*head.layout, *head.key, levels);
  full_values_ = simd::is_full_bf16(*head.layout, *head.value, levels);
  const int tokens = head.layout->page_tokens;
  grow(key_tile_, simd::tile_floats(Side::kKey, tokens, head.key->dim));
  grow(value_tile_, simd::tile_floats(Side::kValue, tokens, head.value->dim));
  grow(scores_, static_cast<size_t>(queries.count) * simd::tile_stride(tokens));
}

void FloatPages::see(const PageRun& run, const AttentionState& state) {
  const int tokens = head_.layout->page_tokens, stride = simd::tile_stride(tokens);
  const int value_stride = simd::tile_stride(head_.value->dim);
  for (int page = run.skipped; page < run.num_pages; ++page) {
    const int first = run.first_query[page], rows = run.end_query(page, tokens, queries_.count) - first;
    if (rows <= 0) continue;
    score(run, page, first, rows);
    const int masked = page == 0 ? run.masked_tokens : 0;
    float* acc = state.acc + static_cast<size_t>(first) * state.stride;
    for (int row = 0; row < rows; ++row) {
      float* scores = scores_.data() + static_cast<size_t>(row) * stride;
      if (queries_.soft_cap != 0) {
        simd::soft_cap_row(scores, queries_.offsets == nullptr ? 0 : queries_.offsets[first + row],
                           queries_.soft_cap, tokens);
      }
      const int hidden = std::max(masked, run.hidden_tokens(page, first + row, tokens));
      if (hidden > 0) std::fill_n(scores, hidden, -std::numeric_limits<float>::infinity());
    }
    simd::softmax_rows({.scores = scores_.data(),
                        .stride = stride,
                        .rows = rows,
                        .tokens = tokens,
                        .first_valid = tokens,
                        .group = 1,
                        .maximum = state.maximum + first,
                        .sum = state.sum + first,
                        .acc = acc,
                        .acc_stride = state.stride,
                        .dim = value_stride});
    add(run, page, rows, acc, state.stride);
  }
}

simd::FullPage FloatPages::full_page(const PageRun& run, int page, const VectorLayout& vector) const {
  std::byte* const* slabs = run.slabs + static_cast<size_t>(page) * kMaxSlabs;
  const bool more = page + kPrefetchPages < run.num_pages + run.pages_after;
  return {head_.layout, &vector, slabs, more ? slabs + kPrefetchPages * kMaxSlabs : slabs};
}

void FloatPages::score(const PageRun& run, int page, int first, int rows) {
  const int stride = simd::tile_stride(head_.layout->page_tokens);
  const float* queries = queries_.rows + static_cast<size_t>(first) * queries_.stride;
  if (rows <= simd::kMaxFullRows && full_keys_) {
    return simd::score_full_rows(full_page(run, page, *head_.key), queries, queries_.stride, rows,
                                 scores_.data(), stride);
  }
  const PageView view{run.slabs + static_cast<size_t>(page) * kMaxSlabs};
  simd::decode_tile(*head_.layout, *head_.key, view, levels_, key_tile_.data(), scratch_);
  simd::multiply_tile({queries, queries_.stride, key_tile_.data(), stride, scores_.data(), stride, rows,
                       head_.key->dim, stride, /*accumulate=*/false});
}

void FloatPages::add(const PageRun& run, int page, int rows, float* acc, int acc_stride) {
  const int tokens = head_.layout->page_tokens, stride = simd::tile_stride(tokens);
  if (rows <= simd::kMaxFullRows && full_values_) {
    return simd::add_full_rows(full_page(run, page, *head_.value), scores_.data(), stride, rows, acc,
                               acc_stride);
  }
  const PageView view{run.slabs + static_cast<size_t>(page) * kMaxSlabs};
  const int value_stride = simd::tile_stride(head_.value->dim);
  simd::decode_tile(*head_.layout, *head_.value, view, levels_, value_tile_.data(), scratch_);
  simd::multiply_tile({scores_.data(), stride, value_tile_.data(), value_stride, acc, acc_stride, rows,
                       tokens, value_stride, /*accumulate=*/true});
}

}  // namespace lowkey::kernels
