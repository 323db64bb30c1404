#include "kernels/cpu/page_encode.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/simd_ops.h"
#include "kernels/page/dtype.h"
#include "kernels/page/embedded_quantizer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/page_encode.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

// embedded_code(row[f] / scalar) for f < n; writes up to a vector more.
void code_row(const float* row, float scalar, size_t n, uint8_t* codes) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<hn::ScalableTag<float>> di;
  const hn::Rebind<uint8_t, hn::ScalableTag<float>> d8;
  const EmbeddedTables& tables = embedded_tables();
  const auto divisor = hn::Set(d, scalar);
  for (size_t f = 0; f < n; f += hn::Lanes(d)) {
    const auto u = hn::Div(load_first(d, row + f, n - f), divisor);
    auto hi = hn::Zero(di);
    for (int i = 1; i < 16; ++i) {
      hi = hn::Add(
          hi, hn::IfThenElseZero(hn::RebindMask(di, hn::Ge(u, hn::Set(d, tables.edge[i]))), hn::Set(di, 1)));
    }
    const auto fine =
        hn::Mul(hn::Sub(u, hn::GatherIndex(d, tables.edge, hi)), hn::GatherIndex(d, tables.inv_step, hi));
    const auto lo = hn::ConvertTo(di, hn::Min(hn::Max(fine, hn::Zero(d)), hn::Set(d, 15.0f)));
    hn::StoreU(hn::DemoteTo(d8, hn::Add(hn::ShiftLeft<4>(hi), lo)), d8, codes + f);
  }
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(code_row);

namespace {

constexpr int kMaxLanes = 16;  // f32 lanes of the widest vector

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

// Copies words of n elements, [token][dim] -> planes: element (token, feature) of size `Element`.
template <class Element>
void place_row(const PageLayout& layout, const VectorLayout& vector, PageView page, int token,
               const Element* row) {
  constexpr int n = 4 / sizeof(Element);
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

template <class Element>
void place_rows(const PageLayout& layout, const VectorLayout& vector, const std::byte* rows, PageView page) {
  const auto* elements = reinterpret_cast<const Element*>(rows);
  for (int t = 0; t < layout.page_tokens; ++t) {
    place_row(layout, vector, page, t, elements + static_cast<size_t>(t) * vector.dim);
  }
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

void PageEncoder::encode(const PageLayout& layout, const VectorLayout& vector,
                         std::span<const std::byte* const> head_rows, PageView page) {
  codes_.resize(std::max(codes_.size(), static_cast<size_t>(vector.dim) + kMaxLanes));
  row_.resize(std::max(row_.size(), static_cast<size_t>(vector.dim)));
  const std::byte* rows = head_rows[0];
  if (is_full(layout, vector)) {
    if (layout.dtype == DType::kF32) return place_rows<uint32_t>(layout, vector, rows, page);
    return place_rows<uint16_t>(layout, vector, rows, page);
  }
  if (!is_embedded8(layout, vector)) return encode_vector(layout, vector, head_rows, page);
  auto* scalars = reinterpret_cast<uint16_t*>(page.slabs[0] + vector.scalars_offset);
  for (int t = 0; t < layout.page_tokens; ++t) {
    const float* row = row_as_f32(rows, layout.dtype, t, vector.dim, row_.data());
    scalars[t] = embedded_row_scalar({row, vector.dim});
    const float scalar = bf16_to_f32(scalars[t]);
    if (scalar > 0.0f) {
      HWY_DYNAMIC_DISPATCH(code_row)(row, scalar, vector.dim, codes_.data());
    } else {
      std::memset(codes_.data(), embedded_code(0.0f), vector.dim);
    }
    place_row(layout, vector, page, t, codes_.data());
  }
}

}  // namespace lowkey::kernels::simd
#endif  // HWY_ONCE
