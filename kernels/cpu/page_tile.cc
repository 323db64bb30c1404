#include "kernels/cpu/page_tile.h"

#include <cstring>

#include "kernels/cpu/simd_ops.h"
#include "kernels/page/dtype.h"
#include "kernels/page/embedded_quantizer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/page_tile.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using DU = hn::ScalableTag<uint32_t>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;

// What one 32-bit word of a plane holds. get(word, j): element j of every lane's word, unscaled.
struct FullF32 {
  static constexpr int kPerWord = 1;
  static constexpr bool kScaled = false;
  HWY_INLINE VF get(VU word, int) const { return hn::BitCast(DF(), word); }
};

struct FullBf16 {
  static constexpr int kPerWord = 2;
  static constexpr bool kScaled = false;
  HWY_INLINE VF get(VU word, int j) const {
    return hn::BitCast(DF(), j == 0 ? hn::ShiftLeft<16>(word) : hn::And(word, hn::Set(DU(), 0xffff0000u)));
  }
};

// base[hi] + step[hi] * lo; a table of 16 is one register on AVX-512.
struct Embedded8 {
  static constexpr int kPerWord = 4;
  static constexpr bool kScaled = true;
  const EmbeddedTables& tables = embedded_tables();

  HWY_INLINE VF look_up(const float* table, VU index) const {
    const hn::RebindToSigned<DF> di;
    if constexpr (hn::MaxLanes(DF()) == 16) {
      return hn::TableLookupLanes(hn::LoadU(DF(), table), hn::IndicesFromVec(DF(), hn::BitCast(di, index)));
    } else {
      return hn::GatherIndex(DF(), table, hn::BitCast(di, index));
    }
  }
  HWY_INLINE VF get(VU word, int j) const {
    const hn::RebindToSigned<DF> di;
    const VU code = hn::ShiftRightSame(word, 8 * j);
    const VU hi = hn::And(hn::ShiftRight<4>(code), hn::Set(DU(), 15));
    const VU lo = hn::And(code, hn::Set(DU(), 15));
    return hn::MulAdd(look_up(tables.step, hi), hn::ConvertTo(DF(), hn::BitCast(di, lo)),
                      look_up(tables.base, hi));
  }
};

// `scalars`: one per token, zeros up to the tile's stride.
template <class Element>
void decode_key_plane(const Element& element, const uint32_t* words, int features, int tokens,
                      const float* scalars, float* tile, int stride) {
  const int lanes = static_cast<int>(hn::Lanes(DF()));
  for (int quad = 0; quad < features / Element::kPerWord; ++quad) {
    float* out = tile + static_cast<size_t>(quad) * Element::kPerWord * stride;
    for (int t = 0; t < tokens; t += lanes) {
      const VU word = load_first(DU(), words + static_cast<size_t>(quad) * tokens + t, tokens - t);
      for (int j = 0; j < Element::kPerWord; ++j) {
        VF value = element.get(word, j);
        if constexpr (Element::kScaled) value = hn::Mul(value, hn::LoadU(DF(), scalars + t));
        hn::StoreU(value, DF(), out + static_cast<size_t>(j) * stride + t);
      }
    }
  }
}

template <class Element>
void decode_value_plane(const Element& element, const uint32_t* words, int features, int tokens,
                        const float* scalars, float* tile, int stride) {
  const int lanes = static_cast<int>(hn::Lanes(DF()));
  for (int quad = 0; quad < tokens / Element::kPerWord; ++quad) {
    for (int f = 0; f < features; f += lanes) {
      const VU word = load_first(DU(), words + static_cast<size_t>(quad) * features + f, features - f);
      for (int j = 0; j < Element::kPerWord; ++j) {
        const int token = quad * Element::kPerWord + j;
        VF value = element.get(word, j);
        if constexpr (Element::kScaled) value = hn::Mul(value, hn::Set(DF(), scalars[token]));
        hn::StoreU(value, DF(), tile + static_cast<size_t>(token) * stride + f);
      }
    }
  }
}

template <class Element>
void decode_planes(const Element& element, const PageLayout& layout, const VectorLayout& vector,
                   PageView page, const float* scalars, float* tile) {
  const int tokens = layout.page_tokens;
  for (int i = 0; i < vector.num_planes; ++i) {
    const Plane& plane = layout.planes[vector.first_plane + i];
    const auto* words = reinterpret_cast<const uint32_t*>(page.slabs[0] + plane.offset);
    if (vector.side == Side::kKey) {
      const int stride = tile_stride(tokens);
      decode_key_plane(element, words, plane.features, tokens, scalars,
                       tile + static_cast<size_t>(plane.feature) * stride, stride);
    } else {
      decode_value_plane(element, words, plane.features, tokens, scalars, tile + plane.feature,
                         tile_stride(vector.dim));
    }
  }
}

void decode_full_f32(const PageLayout& layout, const VectorLayout& vector, PageView page, float* tile) {
  decode_planes(FullF32(), layout, vector, page, nullptr, tile);
}

void decode_full_bf16(const PageLayout& layout, const VectorLayout& vector, PageView page, float* tile) {
  decode_planes(FullBf16(), layout, vector, page, nullptr, tile);
}

void decode_embedded8(const PageLayout& layout, const VectorLayout& vector, PageView page, float* tile) {
  constexpr int kMaxPageTokens = 1024;
  HWY_ALIGN float scalars[kMaxPageTokens + kTileLanes];
  const auto* bits = reinterpret_cast<const uint16_t*>(page.slabs[0] + vector.scalars_offset);
  const int tokens = layout.page_tokens;
  for (int t = 0; t < tokens; ++t) scalars[t] = bf16_to_f32(bits[t]);
  for (int t = tokens; t < tile_stride(tokens); ++t) scalars[t] = 0.0f;
  decode_planes(Embedded8(), layout, vector, page, scalars, tile);
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(decode_full_f32);
HWY_EXPORT(decode_full_bf16);
HWY_EXPORT(decode_embedded8);

namespace {

// One head as it is, one plane per group, in level 0: the only arrangement with fast versions.
bool is_plain(const PageLayout& layout, const VectorLayout& vector, int bits) {
  return vector.num_heads == 1 && vector.encode == kNoNumbers && vector.mean == kNoNumbers &&
         vector.scale == kNoNumbers && vector.dim == vector.input_dim &&
         vector.num_planes == (vector.dim + kGroupFeatures - 1) / kGroupFeatures &&
         layout.planes[vector.first_plane].bits == bits && layout.num_levels == 1;
}

bool is_full(const PageLayout& layout, const VectorLayout& vector) {
  return vector.quantizer == Quantizer::kFull &&
         is_plain(layout, vector, static_cast<int>(dtype_bytes(layout.dtype)) * 8);
}

bool is_embedded8(const PageLayout& layout, const VectorLayout& vector) {
  return vector.quantizer == Quantizer::kEmbedded && vector.num_scalars == 1 &&
         vector.norm_edge == kEmbeddedEdge && is_plain(layout, vector, 8);
}

const float* row_as_f32(const std::byte* rows, DType dtype, int token, int dim, float* scratch) {
  const size_t offset = static_cast<size_t>(token) * dim;
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(rows) + offset;
  if (dtype == DType::kBf16) {
    bf16_to_f32_row(reinterpret_cast<const uint16_t*>(rows) + offset, scratch, dim);
  } else {
    for (int f = 0; f < dim; ++f) scratch[f] = load_element(rows, dtype, offset + f);
  }
  return scratch;
}

}  // namespace

void decode_tile(const PageLayout& layout, const VectorLayout& vector, int head, PageView page, int levels,
                 float* tile, float* rows_scratch) {
  if (is_full(layout, vector) && layout.dtype == DType::kF32) {
    return HWY_DYNAMIC_DISPATCH(decode_full_f32)(layout, vector, page, tile);
  }
  if (is_full(layout, vector) && layout.dtype == DType::kBf16) {
    return HWY_DYNAMIC_DISPATCH(decode_full_bf16)(layout, vector, page, tile);
  }
  if (is_embedded8(layout, vector)) return HWY_DYNAMIC_DISPATCH(decode_embedded8)(layout, vector, page, tile);
  decode_vector(layout, vector, page, levels, rows_scratch);
  float* rows = rows_scratch + static_cast<size_t>(layout.page_tokens) * vector.input_dim;
  for (int t = 0; t < layout.page_tokens; ++t) {
    std::memcpy(
        rows + static_cast<size_t>(t) * layout.head_dim,
        rows_scratch + static_cast<size_t>(t) * vector.input_dim + (head - vector.head) * layout.head_dim,
        layout.head_dim * sizeof(float));
  }
  load_tile(vector.side, reinterpret_cast<const std::byte*>(rows), DType::kF32, layout.page_tokens,
            layout.page_tokens, layout.head_dim, tile);
}

void load_tile(Side side, const std::byte* rows, DType dtype, int num_tokens, int page_tokens, int dim,
               float* tile) {
  constexpr int kMaxDim = kMaxGroups * kGroupFeatures;
  float scratch[kMaxDim];
  const int stride = tile_stride(side == Side::kKey ? page_tokens : dim);
  for (int t = 0; t < num_tokens; ++t) {
    if (side == Side::kKey) {
      const float* row = row_as_f32(rows, dtype, t, dim, scratch);
      for (int f = 0; f < dim; ++f) tile[static_cast<size_t>(f) * stride + t] = row[f];
    } else {
      float* target = tile + static_cast<size_t>(t) * stride;
      const float* row = row_as_f32(rows, dtype, t, dim, target);
      if (row != target) std::memcpy(target, row, dim * sizeof(float));
    }
  }
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
