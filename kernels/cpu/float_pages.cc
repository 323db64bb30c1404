#include "kernels/cpu/float_pages.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/scratch.h"

namespace lowkey::kernels {

void FloatPages::prepare(const EncodedHead& head, int levels, const FeatureQueries& queries) {
  head_ = head;
  levels_ = levels;
  queries_ = queries;
  const int tokens = head.layout->page_tokens;
  grow(key_tile_, simd::tile_floats(Side::kKey, tokens, head.key->dim));
  grow(value_tile_, simd::tile_floats(Side::kValue, tokens, head.value->dim));
  grow(scores_, static_cast<size_t>(queries.count) * simd::tile_stride(tokens));
}

void FloatPages::see(const PageRun& run, const AttentionState& state) {
  const int tokens = head_.layout->page_tokens, stride = simd::tile_stride(tokens);
  const int value_stride = simd::tile_stride(head_.value->dim);
  for (int page = 0; page < run.num_pages; ++page) {
    const int first = run.first_query[page], rows = queries_.count - first;
    if (rows <= 0) return;
    const PageView view{run.slabs + static_cast<size_t>(page) * kMaxSlabs};
    simd::decode_tile(*head_.layout, *head_.key, view, levels_, key_tile_.data(), scratch_);
    simd::decode_tile(*head_.layout, *head_.value, view, levels_, value_tile_.data(), scratch_);
    simd::multiply_tile({queries_.rows + static_cast<size_t>(first) * queries_.stride, queries_.stride,
                         key_tile_.data(), stride, scores_.data(), stride, rows, head_.key->dim, stride,
                         /*accumulate=*/false});
    const int masked = page == 0 ? run.masked_tokens : 0;
    for (int row = 0; row < rows; ++row) {
      float* scores = scores_.data() + static_cast<size_t>(row) * stride;
      std::fill_n(scores, masked, -std::numeric_limits<float>::infinity());
      simd::softmax_row(scores, tokens, stride, state.maximum[first + row], state.sum[first + row],
                        state.acc + static_cast<size_t>(first + row) * state.stride, value_stride);
    }
    simd::multiply_tile({scores_.data(), stride, value_tile_.data(), value_stride,
                         state.acc + static_cast<size_t>(first) * state.stride, state.stride, rows, tokens,
                         value_stride, /*accumulate=*/true});
  }
}

}  // namespace lowkey::kernels
