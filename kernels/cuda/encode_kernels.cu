#include "kernels/cuda/encode_kernels.h"

#include "kernels/cuda/encode_rows.h"
#include "kernels/cuda/launch.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kMapThreads = 128;
constexpr int kMapTokens = 8;  // of one block: each weight read serves so many rows

// y = encode (x - mean): sums start at 0 and run over the inputs in ascending order with fused multiply-adds,
// as the reference's do. A thread has one feature of a tile's tokens. `centred`: [input_dim][kMapTokens].
template <class Rows>
__device__ void map_tile(const Rows& rows, const DeviceVector& vector, const FeatureBlock& features, int page,
                         int first, float* centred) {
  const DeviceLayout& layout = rows.layout();
  const int input = vector.layout.input_dim, dim = vector.layout.dim;
  for (int i = threadIdx.x; i < input * kMapTokens; i += kMapThreads) {
    const int token = first + i / input, f = i % input;
    float x = 0;
    if (token < layout.page_tokens) {
      x = rows.row(page, vector.layout.side, vector.layout.head + f / layout.head_dim, token,
                   f % layout.head_dim);
      if (vector.mean != nullptr) x = add_rn(x, -vector.mean[f]);
    }
    centred[f * kMapTokens + i / input] = x;
  }
  __syncthreads();
  const int j = blockIdx.y * kMapThreads + threadIdx.x;
  if (j >= dim) return;
  float sums[kMapTokens] = {};
  if (vector.encode_t == nullptr) {
    for (int t = 0; t < kMapTokens; ++t) sums[t] = centred[j * kMapTokens + t];
  } else {
    for (int i = 0; i < input; ++i) {
      const float weight = vector.encode_t[int64_t{i} * dim + j];
#pragma unroll
      for (int t = 0; t < kMapTokens; ++t) sums[t] = fmaf(weight, centred[i * kMapTokens + t], sums[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < kMapTokens; ++t) {
    if (first + t < layout.page_tokens)
      features_at(features, page, blockIdx.z, gridDim.z, layout.page_tokens, first + t)[j] = sums[t];
  }
}

// Grid: (pages, taken in turn, * token tiles, feature tiles, vector).
template <class Rows>
__global__ void map_rows(Rows rows, FeatureBlock features) {
  LOWKEY_SHARED(float, centred);
  const DeviceVector& vector = vector_at(rows, blockIdx.z);
  if (static_cast<int>(blockIdx.y) * kMapThreads >= vector.layout.dim) return;
  const int tiles = (rows.layout().page_tokens + kMapTokens - 1) / kMapTokens, count = rows.size();
  for (int page = blockIdx.x / tiles; page < count; page += gridDim.x / tiles) {
    map_tile(rows, vector, features, page, blockIdx.x % tiles * kMapTokens, centred);
    __syncthreads();
  }
}

// Grid: (pages, taken in turn, side * heads). Of a sequence's own pages only the first has a sink.
template <class Rows>
__global__ void write_sinks(Rows rows) {
  const DeviceLayout& layout = rows.layout();
  const Side side = static_cast<int>(blockIdx.y) < layout.num_kv_heads ? Side::kKey : Side::kValue;
  const int head = blockIdx.y % layout.num_kv_heads, count = rows.size();
  for (int page = blockIdx.x; page < count; page += gridDim.x) {
    if (!rows.is_first(page)) continue;
    std::byte* slab = rows.slabs(page)[layout.num_levels];
    if (slab == nullptr) continue;
    slab += rows_of(layout, rows.bank(), side, head).sink_offset;
    for (int i = threadIdx.x; i < layout.sink_tokens * layout.head_dim; i += blockDim.x)
      store_value(slab, layout.dtype, i,
                  rows.row(page, side, head, i / layout.head_dim, i % layout.head_dim));
  }
}

// Grid: (row of the step). Rows of complete pages are theirs alone.
__global__ void write_tails(StepView step) {
  const DeviceRow& row = step.rows[blockIdx.x];
  const DeviceSequence& sequence = step.sequences[row.sequence];
  const DeviceLayout& layout = *step.layout;
  const int end = sequence.first_slot + sequence.num_rows;
  if (sequence.tail == nullptr) return;
  if (row.slot / layout.page_tokens != end / layout.page_tokens) return;
  const int width = layout.num_kv_heads * layout.head_dim;
  for (int i = threadIdx.x; i < 2 * width; i += blockDim.x) {
    const Side side = i < width ? Side::kKey : Side::kValue;
    const int head = i % width / layout.head_dim, f = i % layout.head_dim;
    store_value(sequence.tail + rows_of(layout, step.bank, side, head).tail_offset, layout.dtype,
                int64_t{row.slot % layout.page_tokens} * layout.head_dim + f,
                exact_value(step, sequence, side, head, row.slot, f));
  }
}

// Grid: (side * heads). Read: kept rows -> `rows`; written: `rows` -> tail.
__global__ void copy_kept_tail(CompactionView view, int first, int left, std::byte* rows, bool write) {
  const DeviceLayout& from = *view.from;
  const Side side = static_cast<int>(blockIdx.x) < from.num_kv_heads ? Side::kKey : Side::kValue;
  const int head = blockIdx.x % from.num_kv_heads;
  const int64_t own = int64_t{blockIdx.x} * left * from.head_dim;
  std::byte* tail = view.tail + rows_of(from, view.bank, side, head).tail_offset;
  for (int i = threadIdx.x; i < left * from.head_dim; i += blockDim.x) {
    if (write) {
      store_value(tail, from.dtype, i, load_value(rows, from.dtype, own + i));
    } else {
      const int slot = view.keep[int64_t{head} * view.num_kept + first + i / from.head_dim];
      store_value(rows, from.dtype, own + i, source_value(view, side, head, slot, i % from.head_dim));
    }
  }
}

template <class Rows>
void launch_map(cudaStream_t stream, const Rows& rows, const LayoutShape& layout, int num_pages,
                const FeatureBlock& features) {
  const int input = layout.join * layout.head_dim;
  launch(map_rows<Rows>,
         {dim3(num_pages * ceil_div(layout.page_tokens, kMapTokens), ceil_div(input, kMapThreads),
               layout.vectors()),
          dim3(kMapThreads), size_t(input) * kMapTokens * sizeof(float)},
         stream, rows, features);
}

}  // namespace

void launch_map_step_rows(cudaStream_t stream, const StepView& step, const LayoutShape& layout,
                          const PageList& pages, const FeatureBlock& features) {
  launch_map(stream, StepRows{step, pages}, layout, pages.most, features);
}

void launch_write_sinks(cudaStream_t stream, const StepView& step, const LayoutShape& layout,
                        const PageList& pages) {
  if (layout.sink_tokens == 0) return;
  launch(write_sinks<StepRows>, {dim3(pages.most, 2 * layout.num_kv_heads), dim3(128)}, stream,
         StepRows{step, pages});
}

void launch_write_tails(cudaStream_t stream, const StepView& step) {
  launch(write_tails, {dim3(step.num_rows), dim3(256)}, stream, step);
}

void launch_map_kept_rows(cudaStream_t stream, const CompactionView& view, const LayoutShape& to,
                          int first_page, int num_pages, const FeatureBlock& features) {
  launch_map(stream, KeptRows{view, first_page, num_pages}, to, num_pages, features);
}

void launch_write_kept_sink(cudaStream_t stream, const CompactionView& view, const LayoutShape& to) {
  if (to.sink_tokens == 0 || view.num_kept < to.page_tokens) return;
  const int pages = view.num_kept / to.page_tokens;
  launch(write_sinks<KeptRows>, {dim3(pages, 2 * to.num_kv_heads), dim3(128)}, stream,
         KeptRows{view, 0, pages});
}

void launch_write_kept_tail(cudaStream_t stream, const CompactionView& view, const LayoutShape& from,
                            int first, int left, std::byte* rows) {
  if (left == 0) return;
  const LaunchShape shape{dim3(2 * from.num_kv_heads), dim3(128)};
  launch(copy_kept_tail, shape, stream, view, first, left, rows, false);
  launch(copy_kept_tail, shape, stream, view, first, left, rows, true);
}

}  // namespace lowkey::kernels::cuda
