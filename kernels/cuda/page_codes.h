// One element of a stored vector at a time, on the device: the twin of kernels/page/page_codec.cc, to the
// bit.
#pragma once

#include "kernels/cuda/step_view.h"

namespace lowkey::kernels::cuda {

// The word and the shift of element (token, feature of the group) in a plane.
__device__ __forceinline__ int word_of(Side side, const Plane& plane, int page_tokens, int token, int feature,
                                       int* shift) {
  const int n = 32 / plane.bits;
  *shift = (side == Side::kKey ? feature % n : token % n) * plane.bits;
  return side == Side::kKey ? feature / n * page_tokens + token : token / n * plane.features + feature;
}

__device__ __forceinline__ uint32_t low_bits(int bits) {
  return bits == 32 ? ~0u : (1u << bits) - 1;
}

// The code's bits in the first `levels` levels; *bits: how many.
__device__ __forceinline__ uint32_t read_code(const DeviceVector& vector, std::byte* const* slabs, int levels,
                                              int page_tokens, int token, int feature, int* bits) {
  const DeviceGroup group = vector.groups[feature / kGroupFeatures];
  uint32_t code = 0;
  *bits = 0;
  for (int i = 0; i < group.num_planes; ++i) {
    const Plane& plane = vector.planes[group.first_plane + i].plane;
    if (plane.level >= levels) continue;
    int shift;
    const int word = word_of(vector.layout.side, plane, page_tokens, token, feature % kGroupFeatures, &shift);
    const auto* words = reinterpret_cast<const uint32_t*>(slabs[plane.level] + plane.offset);
    code = (plane.bits == 32 ? 0 : code << plane.bits) | (words[word] >> shift & low_bits(plane.bits));
    *bits += plane.bits;
  }
  return code;
}

__device__ __forceinline__ float embedded_value(const EmbeddedTables& tables, uint32_t code, int bits) {
  if (bits == 1) return tables.value1[code];
  if (bits == 2) return tables.value2[code];
  if (bits == 3) return tables.value3[code];
  if (bits == 4) return tables.value4[code];
  const int merged = 1 << (8 - bits);
  const int hi = static_cast<int>(code) >> (bits - 4), lo = static_cast<int>(code) % (16 / merged) * merged;
  const float middle = add_rn(static_cast<float>(lo), mul_rn(static_cast<float>(merged - 1), 0.5f));
  return add_rn(tables.base[hi], mul_rn(tables.step[hi], middle));
}

__device__ __forceinline__ uint32_t embedded_code(const EmbeddedTables& tables, float u) {
  int hi = 0;
  for (int i = 1; i < 16; ++i) hi += u >= tables.edge[i];
  const float fine = mul_rn(add_rn(u, -tables.edge[hi]), tables.inv_step[hi]);
  const int lo = fine > 0.0f ? static_cast<int>(fine < 15.0f ? fine : 15.0f) : 0;
  return static_cast<uint32_t>(hi * 16 + lo);
}

__device__ __forceinline__ float norm_of(const DeviceVector& vector, std::byte* const* slabs, int token) {
  if (vector.layout.num_scalars == 0) return 1.0f;
  return from_bf16(reinterpret_cast<const uint16_t*>(slabs[0] + vector.layout.scalars_offset)[token]);
}

// Index of the pair of affine codes of an element.
__device__ __forceinline__ int affine_index(const DeviceVector& vector, int page_tokens, int token,
                                            int feature) {
  const VectorLayout& layout = vector.layout;
  return layout.axis == ScaleAxis::kChannel ? token / layout.scale_span * layout.dim + feature
                                            : feature / layout.scale_span * page_tokens + token;
}

// Feature of a token in basis coordinates; 0 without bits.
__device__ __forceinline__ float read_feature(const DeviceLayout& layout, const DeviceVector& vector,
                                              std::byte* const* slabs, int levels, int token, int feature) {
  int bits;
  const uint32_t code = read_code(vector, slabs, levels, layout.page_tokens, token, feature, &bits);
  if (bits == 0) return 0.0f;
  if (vector.layout.quantizer == Quantizer::kFull) {
    if (layout.dtype == DType::kF32) return as_float(code);
    return layout.dtype == DType::kBf16 ? from_bf16(code) : from_f16(static_cast<uint16_t>(code));
  }
  if (vector.layout.quantizer == Quantizer::kAffine) {
    const auto* pairs = reinterpret_cast<const uint16_t*>(slabs[0] + vector.layout.scales_offset);
    const int pair = affine_index(vector, layout.page_tokens, token, feature);
    return add_rn(from_f16(pairs[2 * pair]), mul_rn(from_f16(pairs[2 * pair + 1]), static_cast<float>(code)));
  }
  const float value = mul_rn(embedded_value(*layout.tables, code, bits), norm_of(vector, slabs, token));
  return vector.scale == nullptr ? value : mul_rn(value, vector.scale[feature]);
}

}  // namespace lowkey::kernels::cuda
