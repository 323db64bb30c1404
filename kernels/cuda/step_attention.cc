#include "kernels/cuda/step_attention.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/encode_kernels.h"
#include "kernels/cuda/query_kernels.h"
#include "kernels/ops/attention_window.h"

namespace lowkey::kernels::cuda {
namespace {

// Bounds of scratch memory; larger steps are made in parts, call by call.
constexpr size_t kMaxPartialBytes = size_t{256} << 20;
constexpr size_t kMaxFeatureBytes = size_t{64} << 20;

size_t floats_of_page(const PageLayout& layout, int stride) {
  return size_t(2) * layout.vectors_per_side() * layout.page_tokens * stride;
}

// Bytes of the partial results of so many pieces under every head.
size_t partial_floats(const StepGraphs::Step& step, int pieces, int max_dim) {
  return size_t(pieces) * step.num_q_heads * (max_dim + 2);
}

}  // namespace

Result<StepAttention> StepAttention::create(std::shared_ptr<DevicePool> pool, cudaStream_t stream,
                                            LayoutCache& layouts, const DeviceLimits& limits) {
  LOWKEY_ASSIGN(copied, Event::create());
  StepTables tables(pool, stream, std::move(copied), layouts);
  return StepAttention(std::move(pool), stream, layouts, limits, std::move(tables));
}

std::optional<StepSize> StepAttention::accepts(const StepGraphs::Step& step) const {
  const auto size = size_of(step);
  if (!size) return std::nullopt;
  const int max_dim = layouts_.of(*step.layout).max_dim();
  // Room grows by doubling.
  if (2 * partial_floats(step, size->pieces, max_dim) * sizeof(float) > kMaxPartialBytes) return std::nullopt;
  if (size->pages * floats_of_page(*step.layout, max_dim) * sizeof(float) > kMaxFeatureBytes)
    return std::nullopt;
  return size;
}

void StepAttention::reserve(const StepGraphs::Step& step, const StepSize& size) {
  tables_.reserve(step, size);
  const PageLayout& layout = *step.layout;
  const int stride = layouts_.of(layout).max_dim();
  const size_t queries = size_t(size.rows) * step.num_q_heads;
  map_ = {.queries = queries_.get<float>(queries * (stride + 1)),
          .layout = layouts_.of(layout).device(),
          .stride = stride,
          .own = true};
  map_.biases = map_.queries + queries * stride;
  rounded_queries_.get<std::byte>(size_t(size.rows) * layout.num_kv_heads * kFastQueries *
                                  (sizeof(FastQuery) + sizeof(float)));
  partials_.get<float>(partial_floats(step, tables_.piece_capacity(), stride));
  if (size.pages == 0) return;
  const size_t most = kMaxFeatureBytes / sizeof(float) / floats_of_page(layout, stride);
  features_.get<float>(std::min(most, size_t(size.rows)) * floats_of_page(layout, stride));
}

void StepAttention::begin(const StepGraphs::Step& step, const StepSize& size, std::span<const int> windows) {
  step_ = step;
  size_ = size;
  windows_.clear();
  tables_.begin(step, size, map_);
  for (const int window : windows) tables_.fill(window);
}

StepView StepAttention::view(const AttentionStep& step) const {
  const PageLayout& layout = *step.layout;
  StepView view{.layout = map_.layout,
                .bank = step.bank,
                .head_dim = layout.head_dim,
                .num_q_heads = step.num_q_heads,
                .group = step.num_q_heads / layout.num_kv_heads,
                .scale = step.scale,
                .soft_cap = step.soft_cap,
                .q = step.q.as<float>(),
                .k = step.k.as<float>(),
                .v = step.v.as<float>(),
                .out = step.out.as<float>()};
  tables_.place(step.window, view);
  return view;
}

void StepAttention::write_pages(const AttentionStep& step, const StepView& view) {
  // Whether a step completes pages is part of its shape: most complete none, and need not look.
  if (size_.pages == 0 || !step.first_reader) return;
  const FeatureBlock features{features_.get<float>(0), map_.stride};
  const LayoutShape shape = shape_of(*step.layout);
  launch_map_step_rows(stream_, view, shape, tables_.pages(), features);
  launch_quantize_step(stream_, view, shape, tables_.pages(), features);
  launch_write_sinks(stream_, view, shape, tables_.pages());
}

void StepAttention::attend(const AttentionStep& step) {
  const PageLayout& layout = *step.layout;
  LOWKEY_CHECK(step.layout == step_.layout && step.num_q_heads == step_.num_q_heads &&
                   step.sequences.data() == step_.sequences.data() && step.q.rows == size_.rows,
               "attention of {} rows and {} heads in a step of {} and {}", step.q.rows, step.num_q_heads,
               size_.rows, step_.num_q_heads);
  check_window(step);
  if (std::ranges::find(windows_, step.window) == windows_.end()) windows_.push_back(step.window);
  tables_.fill(step.window);
  const StepView view = this->view(step);
  write_pages(step, view);
  const LayoutTables& tables = layouts_.known(layout);
  const StepExtents extents{tables.max_dim(), layout.sink_tokens + layout.page_tokens, kMaxStepStates};
  const Partials partials{partials_.get<float>(0), extents.max_dim + 2};
  FastStep fast = tables.fast_step(layout, step.bank, step.num_q_heads, limits_);
  if (fast.kind == FastKind::kNone) {
    launch_map_queries(stream_, view, map_, fast);
    launch_attend_pages(stream_, view, tables_.items(step.window), extents, partials);
  } else {
    const size_t count = size_t(size_.rows) * layout.num_kv_heads * kFastQueries;
    fast.queries = rounded_queries_.get<FastQuery>(0);
    fast.factors = reinterpret_cast<float*>(fast.queries + count);
    launch_map_queries(stream_, view, map_, fast);
    launch_decode_attention(stream_, view, fast, tables_.items(step.window), limits_, partials);
  }
  launch_finish_rows(stream_, view, extents, partials, nullptr, step.last_reader);
}

}  // namespace lowkey::kernels::cuda
