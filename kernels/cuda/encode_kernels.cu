#include "kernels/cuda/encode_kernels.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/page_codes.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kMapThreads = 128;
constexpr int kMapTokens = 8;  // of one block: each weight read serves so many rows
constexpr int kQuantizeThreads = 256;
constexpr int kNormLanes = 8;  // partial sums of a norm, as embedded_row_scalar() has them

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
__device__ float source_value(const CompactionView& view, Side side, int head, int slot, int f) {
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

__device__ float* features_at(const FeatureBlock& features, int page, int vector, int num_vectors,
                              int page_tokens, int token) {
  return features.data + ((int64_t{page} * num_vectors + vector) * page_tokens + token) * features.stride;
}

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

// Of an embedded vector: y / scale.
__device__ float scaled(const DeviceVector& vector, const float* y, int f) {
  return vector.scale == nullptr ? y[f] : mul_rn(y[f], 1.0f / vector.scale[f]);
}

__device__ uint16_t bf16_up(float x) {
  const uint32_t bits = as_bits(x);
  if (bits >= 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | (bits > 0x7f800000u ? 0x40 : 0));
  return static_cast<uint16_t>((bits + 0xffffu) >> 16);
}

// embedded_row_scalar(), kNormLanes threads per token: partial sum i % 8 belongs to lane i.
__device__ void write_norms(const DeviceVector& vector, int page_tokens, const float* features, int stride,
                            std::byte* const* slabs, float* norms) {
  auto* stored = reinterpret_cast<uint16_t*>(slabs[0] + vector.layout.scalars_offset);
  const int dim = vector.layout.dim, lane = threadIdx.x % kNormLanes;
  for (int begin = 0; begin < page_tokens; begin += kQuantizeThreads / kNormLanes) {
    const int token = begin + threadIdx.x / kNormLanes;
    float sum = 0, largest = 0;
    for (int f = lane; f < dim && token < page_tokens; f += kNormLanes) {
      const float u = scaled(vector, features + int64_t{token} * stride, f);
      sum = add_rn(sum, mul_rn(u, u));
      largest = largest < fabsf(u) ? fabsf(u) : largest;
    }
    float total = 0;
    for (int i = 0; i < kNormLanes; ++i)
      total = add_rn(total, shuffle(sum, threadIdx.x % kWarpSize / kNormLanes * kNormLanes + i));
    largest = max_over<kNormLanes>(largest);
    if (token >= page_tokens || lane != 0) continue;
    const float rms = sqrtf(total / static_cast<float>(dim));
    const float clipped = largest / vector.layout.norm_edge;
    const uint16_t bits = bf16_up(rms < clipped ? clipped : rms);
    stored[token] = bits;
    norms[token] = from_bf16(bits);
  }
}

__device__ float clamp_f16(float x) {
  constexpr float kMost = 65504.0f;
  return x < -kMost ? -kMost : kMost < x ? kMost : x;
}

// One thread per block of elements that share a pair of affine codes.
__device__ void write_pairs(const DeviceVector& vector, int page_tokens, const float* features, int stride,
                            std::byte* const* slabs) {
  auto* pairs = reinterpret_cast<uint16_t*>(slabs[0] + vector.layout.scales_offset);
  const bool channel = vector.layout.axis == ScaleAxis::kChannel;
  const int dim = vector.layout.dim, span = vector.layout.scale_span;
  const int token_span = channel ? span : 1, feature_span = channel ? 1 : span;
  const int feature_blocks = (dim + feature_span - 1) / feature_span;
  const int token_blocks = (page_tokens + token_span - 1) / token_span;
  for (int b = threadIdx.x; b < feature_blocks * token_blocks; b += kQuantizeThreads) {
    const int first_token = b / feature_blocks * token_span,
              first_feature = b % feature_blocks * feature_span;
    const int bits = vector.groups[first_feature / kGroupFeatures].bits;
    float low = INFINITY, high = -INFINITY;
    for (int t = first_token; t < min(first_token + token_span, page_tokens); ++t) {
      for (int f = first_feature; f < min(first_feature + feature_span, dim); ++f) {
        const float y = features[int64_t{t} * stride + f];
        low = y < low ? y : low;
        high = high < y ? y : high;
      }
    }
    uint16_t minimum = 0, step = 0;
    if (low <= high) {
      low = clamp_f16(low);
      high = clamp_f16(high);
      minimum = to_f16(low);
      if (bits > 0) step = to_f16(clamp_f16(add_rn(high, -low) / static_cast<float>((1 << bits) - 1)));
    }
    const int pair = affine_index(vector, page_tokens, first_token, first_feature);
    pairs[2 * pair] = minimum;
    pairs[2 * pair + 1] = step;
  }
}

__device__ uint32_t affine_code(float y, float minimum, float step, int bits) {
  if (!(step > 0)) return 0;
  const float code = rintf(add_rn(y, -minimum) / step);
  if (!(code > 0)) return 0;
  const auto most = static_cast<float>((1 << bits) - 1);
  return static_cast<uint32_t>(code < most ? code : most);
}

// The whole code of an element, all its group's bits.
__device__ uint32_t code_of(const DeviceLayout& layout, const DeviceVector& vector, const float* features,
                            int stride, const float* norms, std::byte* const* slabs, int bits, int token,
                            int feature) {
  const float* y = features + int64_t{token} * stride;
  switch (vector.layout.quantizer) {
    case Quantizer::kFull:
      if (layout.dtype == DType::kF32) return as_bits(y[feature]);
      return layout.dtype == DType::kBf16 ? to_bf16(y[feature]) : to_f16(y[feature]);
    case Quantizer::kEmbedded: {
      const float norm = vector.layout.num_scalars > 0 ? norms[token] : 1.0f;
      const float u = norm > 0.0f ? scaled(vector, y, feature) / norm : 0.0f;
      return embedded_code(*layout.tables, u) >> (8 - bits);
    }
    default: {
      const auto* pairs = reinterpret_cast<const uint16_t*>(slabs[0] + vector.layout.scales_offset);
      const int pair = affine_index(vector, layout.page_tokens, token, feature);
      return affine_code(y[feature], from_f16(pairs[2 * pair]), from_f16(pairs[2 * pair + 1]), bits);
    }
  }
}

// All bytes of one plane, a word per thread: what no element fills is 0.
__device__ void write_plane(const DeviceLayout& layout, const DeviceVector& vector, const DevicePlane& entry,
                            const float* features, int stride, const float* norms, std::byte* const* slabs) {
  const Plane& plane = entry.plane;
  const int tokens = layout.page_tokens, n = 32 / plane.bits;
  auto* words = reinterpret_cast<uint32_t*>(slabs[plane.level] + plane.offset);
  for (int w = threadIdx.x; w < static_cast<int>(plane.bytes / 4); w += kQuantizeThreads) {
    const bool key = vector.layout.side == Side::kKey;
    uint32_t word = 0;
    for (int i = 0; i < n; ++i) {
      const int token = key ? w % tokens : w / plane.features * n + i;
      const int f = key ? w / tokens * n + i : w % plane.features;
      if (token >= tokens || f >= plane.features) continue;
      const uint32_t code =
          code_of(layout, vector, features, stride, norms, slabs, entry.group_bits, token, plane.feature + f);
      word |= (code >> entry.left & low_bits(plane.bits)) << (i * plane.bits);
    }
    words[w] = word;
  }
}

// `norms`: [page_tokens].
template <class Rows>
__device__ void quantize_page(const Rows& rows, const DeviceVector& vector, const FeatureBlock& block,
                              int page, float* norms) {
  const DeviceLayout& layout = rows.layout();
  std::byte* const* slabs = rows.slabs(page);
  const float* features = features_at(block, page, blockIdx.y, gridDim.y, layout.page_tokens, 0);
  if (vector.layout.quantizer == Quantizer::kEmbedded && vector.layout.num_scalars > 0)
    write_norms(vector, layout.page_tokens, features, block.stride, slabs, norms);
  if (vector.layout.quantizer == Quantizer::kAffine)
    write_pairs(vector, layout.page_tokens, features, block.stride, slabs);
  __syncthreads();
  for (int p = 0; p < vector.layout.num_planes; ++p)
    write_plane(layout, vector, vector.planes[p], features, block.stride, norms, slabs);
}

// Grid: (pages, taken in turn, vector).
template <class Rows>
__global__ void quantize(Rows rows, FeatureBlock block) {
  LOWKEY_SHARED(float, norms);
  const DeviceVector& vector = vector_at(rows, blockIdx.y);
  const int count = rows.size();
  for (int page = blockIdx.x; page < count; page += gridDim.x) {
    quantize_page(rows, vector, block, page, norms);
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

template <class Rows>
void launch_codes(cudaStream_t stream, const Rows& rows, const LayoutShape& layout, int num_pages,
                  const FeatureBlock& features) {
  launch(quantize<Rows>,
         {dim3(num_pages, layout.vectors()), dim3(kQuantizeThreads), layout.page_tokens * sizeof(float)},
         stream, rows, features);
}

}  // namespace

void launch_map_step_rows(cudaStream_t stream, const StepView& step, const LayoutShape& layout,
                          const PageList& pages, const FeatureBlock& features) {
  launch_map(stream, StepRows{step, pages}, layout, pages.most, features);
}

void launch_quantize_step(cudaStream_t stream, const StepView& step, const LayoutShape& layout,
                          const PageList& pages, const FeatureBlock& features) {
  launch_codes(stream, StepRows{step, pages}, layout, pages.most, features);
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

void launch_quantize_kept(cudaStream_t stream, const CompactionView& view, const LayoutShape& to,
                          int first_page, int num_pages, const FeatureBlock& features) {
  launch_codes(stream, KeptRows{view, first_page, num_pages}, to, num_pages, features);
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
