#include "kernels/cuda/encode_kernels.h"
#include "kernels/cuda/encode_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace lowkey::kernels::cuda {
namespace {

constexpr int kQuantizeThreads = 256;
constexpr int kNormLanes = 8;  // partial sums of a norm, as embedded_row_scalar() has them

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

template <class Rows>
void launch_codes(cudaStream_t stream, const Rows& rows, const LayoutShape& layout, int num_pages,
                  const FeatureBlock& features) {
  launch(quantize<Rows>,
         {dim3(num_pages, layout.vectors()), dim3(kQuantizeThreads), layout.page_tokens * sizeof(float)},
         stream, rows, features);
}

}  // namespace

void launch_quantize_step(cudaStream_t stream, const StepView& step, const LayoutShape& layout,
                          const PageList& pages, const FeatureBlock& features) {
  launch_codes(stream, StepRows{step, pages}, layout, pages.most, features);
}

void launch_quantize_kept(cudaStream_t stream, const CompactionView& view, const LayoutShape& to,
                          int first_page, int num_pages, const FeatureBlock& features) {
  launch_codes(stream, KeptRows{view, first_page, num_pages}, to, num_pages, features);
}

}  // namespace lowkey::kernels::cuda
