#include "kernels/cpu/page_encode.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/bf16_panels.h"
#include "kernels/cpu/bf16_tiles.h"
#include "kernels/page/affine_quantizer.h"
#include "kernels/page/dtype.h"

namespace lowkey::kernels::simd {
namespace {

int padded(int n) {
  return (n + kEncodeLanes - 1) / kEncodeLanes * kEncodeLanes;
}

template <class T>
T* grow(std::vector<T>& memory, size_t size) {
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

// One head as it is: bytes only move.
bool is_exact(const PageLayout& layout, const VectorLayout& vector) {
  return vector.quantizer == Quantizer::kFull && vector.num_heads == 1 && vector.encode == kNoNumbers &&
         vector.mean == kNoNumbers && layout.num_levels == 1 &&
         vector.num_planes == (vector.dim + kGroupFeatures - 1) / kGroupFeatures;
}

// [token][dim] -> planes of 32-bit words.
template <class Element>
void place_rows(const PageLayout& layout, const VectorLayout& vector, const std::byte* rows, PageView page) {
  constexpr int n = 4 / sizeof(Element);
  for (int token = 0; token < layout.page_tokens; ++token) {
    const Element* row = reinterpret_cast<const Element*>(rows) + static_cast<size_t>(token) * vector.dim;
    for (int i = 0; i < vector.num_planes; ++i) {
      const Plane& plane = layout.planes[vector.first_plane + i];
      auto* out = reinterpret_cast<Element*>(page.slabs[0] + plane.offset);
      const Element* source = row + plane.feature;
      if (vector.side == Side::kKey) {
        for (int f = 0; f < plane.features; f += n) {
          std::memcpy(out + (static_cast<size_t>(f / n) * layout.page_tokens + token) * n, source + f, 4);
        }
      } else {
        Element* target = out + static_cast<size_t>(token / n) * plane.features * n + token % n;
        for (int f = 0; f < plane.features; ++f) target[f * n] = source[f];
      }
    }
  }
}

// The same of 16-bit elements, whole registers at once.
void place_pairs(const PageLayout& layout, const VectorLayout& vector, const std::byte* rows, PageView page) {
  const Plane& plane = pairs_of(layout, vector);
  const auto make = vector.side == Side::kKey ? make_key_pairs : make_value_pairs;
  make(reinterpret_cast<const uint16_t*>(rows), layout.page_tokens, layout.page_tokens, vector.dim,
       reinterpret_cast<uint16_t*>(page.slabs[plane.level] + plane.offset));
}

// Pages that are not whole registers of tokens, blocks that a register of elements would straddle, and full
// planes of f16 are left to the reference.
bool has_fast_version(const PageLayout& layout, const VectorLayout& vector) {
  if (layout.page_tokens % kEncodeLanes != 0) return false;
  if (vector.quantizer == Quantizer::kFull) return layout.dtype != DType::kF16;
  if (vector.quantizer == Quantizer::kEmbedded) return true;
  const bool along_words = (vector.axis == ScaleAxis::kChannel) == (vector.side == Side::kKey);
  return !along_words || vector.scale_span % kEncodeLanes == 0;
}

}  // namespace

void PageEncoder::encode(const PageLayout& layout, const VectorLayout& vector,
                         std::span<const std::byte* const> head_rows, PageView page) {
  LOWKEY_CHECK(head_rows.size() == vector.num_heads, "rows of {} heads for {}", head_rows.size(),
               vector.num_heads);
  if (is_exact(layout, vector)) {
    if (is_in_pairs(layout, vector) && has_bf16_pairs())
      return place_pairs(layout, vector, head_rows[0], page);
    if (layout.dtype == DType::kF32) return place_rows<uint32_t>(layout, vector, head_rows[0], page);
    return place_rows<uint16_t>(layout, vector, head_rows[0], page);
  }
  if (!has_fast_version(layout, vector)) return encode_vector(layout, vector, head_rows, page);
  if (vector.dim == 0) return;
  Job job{layout, vector, page};
  find_groups(layout, vector, groups_);
  make_features(head_rows, job);
  if (vector.quantizer == Quantizer::kEmbedded) make_norms(job);
  if (vector.quantizer == Quantizer::kAffine) make_pairs(job);
  for (const PlaneGroup& group : groups_) code_group(job, group);
}

void PageEncoder::make_features(std::span<const std::byte* const> head_rows, Job& job) {
  const PageLayout& layout = job.layout;
  const VectorLayout& vector = job.vector;
  const int tokens = layout.page_tokens;
  float* inputs = grow(inputs_, static_cast<size_t>(vector.input_dim) * tokens);
  const float* mean = layout.numbers_at(vector.mean);
  for (size_t head = 0; head < head_rows.size(); ++head) {
    const size_t first = head * layout.head_dim;
    load_columns(head_rows[head], layout.dtype, tokens, layout.head_dim,
                 mean == nullptr ? nullptr : mean + first, inputs + first * tokens);
  }
  float* columns = inputs;
  if (const float* encode = layout.numbers_at(vector.encode)) {
    columns = grow(features_, static_cast<size_t>(vector.dim) * tokens);
    multiply_tile({encode, vector.input_dim, inputs, tokens, columns, tokens, vector.dim, vector.input_dim,
                   tokens,
                   /*accumulate=*/false});
  }
  if (const float* scale = layout.numbers_at(vector.scale))
    unscale_columns(scale, vector.dim, tokens, columns);
  job.columns = columns;
  job.row_stride = padded(vector.dim);
  if (vector.side == Side::kKey && vector.axis != ScaleAxis::kChannel) return;
  job.rows = grow(rows_, static_cast<size_t>(tokens) * job.row_stride);
  columns_to_rows(columns, vector.dim, tokens, rows_.data(), job.row_stride);
}

void PageEncoder::make_norms(const Job& job) {
  const int tokens = job.layout.page_tokens;
  float* norms = grow(norms_, tokens);
  std::fill_n(norms, tokens, 1.0f);
  if (job.vector.num_scalars == 0) return;
  auto* bits = reinterpret_cast<uint16_t*>(job.page.slabs[0] + job.vector.scalars_offset);
  column_norms(job.columns, job.vector.dim, tokens, job.vector.norm_edge, bits);
  for (int t = 0; t < tokens; ++t) norms[t] = bf16_to_f32(bits[t]);
}

void PageEncoder::make_pairs(const Job& job) {
  const VectorLayout& vector = job.vector;
  const bool channel = vector.axis == ScaleAxis::kChannel;
  const int outer = channel ? job.layout.page_tokens : vector.dim;
  const int inner = channel ? vector.dim : job.layout.page_tokens;
  const size_t pairs = static_cast<size_t>((outer + vector.scale_span - 1) / vector.scale_span) * inner;
  // Whole registers are read of the last pairs.
  float* minima = grow(minima_, pairs + kEncodeLanes);
  float* steps = grow(steps_, pairs + kEncodeLanes);
  block_extremes(channel ? job.rows : job.columns, channel ? job.row_stride : inner, outer, inner,
                 vector.scale_span, minima, steps);
  auto* out = reinterpret_cast<AffinePair*>(job.page.slabs[0] + vector.scales_offset);
  for (size_t i = 0; i < pairs; ++i) {
    const size_t feature = channel ? i % inner : i / inner * vector.scale_span;
    out[i] = affine_pair(minima[i], steps[i], groups_[feature / kGroupFeatures].bits);
    minima[i] = f16_to_f32(out[i].minimum);
    steps[i] = f16_to_f32(out[i].step);
  }
}

GroupValues PageEncoder::values_of(const Job& job, const PlaneGroup& group) const {
  const int tokens = job.layout.page_tokens;
  if (job.vector.side == Side::kKey)
    return {job.columns + static_cast<size_t>(group.feature) * tokens, tokens, group.features, tokens};
  return {job.rows + group.feature, job.row_stride, tokens, group.features};
}

void PageEncoder::code_group(const Job& job, const PlaneGroup& group) {
  if (group.bits == 0) return;
  const VectorLayout& vector = job.vector;
  const int tokens = job.layout.page_tokens;
  const bool key = vector.side == Side::kKey, channel = vector.axis == ScaleAxis::kChannel;
  const GroupValues values = values_of(job, group);
  uint32_t* codes = grow(codes_, static_cast<size_t>(values.outer) * padded(values.inner));
  if (vector.quantizer == Quantizer::kFull) full_codes(values, job.layout.dtype, codes);
  if (vector.quantizer == Quantizer::kEmbedded) embedded_codes(values, norms_.data(), key, group.bits, codes);
  if (vector.quantizer == Quantizer::kAffine) {
    // Of features and of tokens: which pair, and how far apart.
    const int feature_step = channel ? 1 : tokens, token_step = channel ? vector.dim : 1;
    const int feature_span = channel ? 1 : vector.scale_span, token_span = channel ? vector.scale_span : 1;
    const AffineIndex index =
        key ? AffineIndex{feature_span, group.feature, feature_step, token_span, 0, token_step}
            : AffineIndex{token_span, 0, token_step, feature_span, group.feature, feature_step};
    affine_codes(values, minima_.data(), steps_.data(), index, group.bits, codes);
  }
  int left = group.bits;
  for (const Plane& plane : group.planes) {
    left -= plane.bits;
    pack_plane(codes, values.outer, values.inner, plane.bits, left,
               reinterpret_cast<uint32_t*>(job.page.slabs[plane.level] + plane.offset));
  }
}

}  // namespace lowkey::kernels::simd
