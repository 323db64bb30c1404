#include "kernels/page/page_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/page/dtype.h"
#include "kernels/page/embedded_quantizer.h"

namespace lowkey::kernels {
namespace {

// Where element (token, feature of the group) of a plane is: bits [shift, shift + bits) of a little-endian
// word.
struct Slot {
  size_t word;
  int shift;
};

Slot slot_of(Side side, const Plane& plane, int page_tokens, int token, int feature) {
  const int n = 32 / plane.bits;
  if (side == Side::kKey) {
    return {static_cast<size_t>(feature / n) * page_tokens + token, feature % n * plane.bits};
  }
  return {static_cast<size_t>(token / n) * plane.features + feature, token % n * plane.bits};
}

uint32_t low_bits(int bits) {
  return bits == 32 ? ~0u : (1u << bits) - 1;
}

uint32_t read_slot(const std::byte* plane_bytes, Slot slot, int bits) {
  uint32_t word;
  std::memcpy(&word, plane_bytes + 4 * slot.word, 4);
  return (word >> slot.shift) & low_bits(bits);
}

void write_slot(std::byte* plane_bytes, Slot slot, int bits, uint32_t value) {
  uint32_t word;
  std::memcpy(&word, plane_bytes + 4 * slot.word, 4);
  word = (word & ~(low_bits(bits) << slot.shift)) | (value << slot.shift);
  std::memcpy(plane_bytes + 4 * slot.word, &word, 4);
}

float element_value(uint32_t bits, DType dtype) {
  if (dtype == DType::kF32) return std::bit_cast<float>(bits);
  return dtype == DType::kBf16 ? bf16_to_f32(static_cast<uint16_t>(bits))
                               : f16_to_f32(static_cast<uint16_t>(bits));
}

const Plane* planes_of(const PageLayout& layout, const VectorLayout& vector) {
  return layout.planes.data() + vector.first_plane;
}

uint16_t* scalars_of(const VectorLayout& vector, PageView page) {
  return reinterpret_cast<uint16_t*>(page.slabs[0] + vector.scalars_offset);
}

// The (minimum, step) pair of one element of an affine vector.
uint16_t* pair_of(const PageLayout& layout, const VectorLayout& vector, PageView page, int token,
                  int feature) {
  const size_t index = vector.axis == ScaleAxis::kChannel
                           ? static_cast<size_t>(token / vector.scale_span) * vector.dim + feature
                           : static_cast<size_t>(feature / vector.scale_span) * layout.page_tokens + token;
  return reinterpret_cast<uint16_t*>(page.slabs[0] + vector.scales_offset) + 2 * index;
}

// y = encode (x - mean), f32 sums in index order.
void map_row(const PageLayout& layout, const VectorLayout& vector, const float* x, float* y) {
  const float* encode = layout.numbers_at(vector.encode);
  const float* mean = layout.numbers_at(vector.mean);
  for (int j = 0; j < vector.dim; ++j) {
    if (encode == nullptr) {
      y[j] = mean == nullptr ? x[j] : x[j] - mean[j];
      continue;
    }
    float sum = 0;
    for (int i = 0; i < vector.input_dim; ++i)
      sum +=
          encode[static_cast<size_t>(j) * vector.input_dim + i] * (mean == nullptr ? x[i] : x[i] - mean[i]);
    y[j] = sum;
  }
}

// All rows of the page as features, [page_tokens][dim].
std::vector<float> features_of(const PageLayout& layout, const VectorLayout& vector,
                               std::span<const std::byte* const> head_rows) {
  std::vector<float> features(static_cast<size_t>(layout.page_tokens) * vector.dim), row(vector.input_dim);
  for (int token = 0; token < layout.page_tokens; ++token) {
    for (int i = 0; i < vector.input_dim; ++i) {
      row[i] = load_element(head_rows[i / layout.head_dim], layout.dtype,
                            static_cast<size_t>(token) * layout.head_dim + i % layout.head_dim);
    }
    map_row(layout, vector, row.data(), features.data() + static_cast<size_t>(token) * vector.dim);
  }
  return features;
}

// Writes one element of every plane of its group: `code` has `total` bits, the first plane takes the highest.
void write_code(const PageLayout& layout, const VectorLayout& vector, PageView page, int token, int feature,
                uint32_t code, int total) {
  int left = total;
  for (int i = 0; i < vector.num_planes; ++i) {
    const Plane& plane = planes_of(layout, vector)[i];
    if (plane.feature != feature / kGroupFeatures * kGroupFeatures) continue;
    left -= plane.bits;
    write_slot(page.slabs[plane.level] + plane.offset,
               slot_of(vector.side, plane, layout.page_tokens, token, feature - plane.feature), plane.bits,
               (code >> left) & low_bits(plane.bits));
  }
}

struct Code {
  uint32_t value = 0;
  int bits = 0;
};

// What the first `levels` levels hold of an element.
Code read_code(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels, int token,
               int feature) {
  Code code;
  for (int i = 0; i < vector.num_planes; ++i) {
    const Plane& plane = planes_of(layout, vector)[i];
    if (plane.feature != feature / kGroupFeatures * kGroupFeatures || plane.level >= levels) continue;
    const Slot slot = slot_of(vector.side, plane, layout.page_tokens, token, feature - plane.feature);
    // A full plane has all of a word at most: nothing is shifted out.
    code.value = (plane.bits == 32 ? 0 : code.value << plane.bits) |
                 read_slot(page.slabs[plane.level] + plane.offset, slot, plane.bits);
    code.bits += plane.bits;
  }
  return code;
}

int group_bits(const PageLayout& layout, const VectorLayout& vector, int feature) {
  int bits = 0;
  for (int i = 0; i < vector.num_planes; ++i) {
    const Plane& plane = planes_of(layout, vector)[i];
    if (plane.feature == feature / kGroupFeatures * kGroupFeatures) bits += plane.bits;
  }
  return bits;
}

uint32_t full_bits(DType dtype, float value) {
  uint32_t bits = 0;
  store_element(&bits, dtype, 0, value);
  return bits;
}

void encode_embedded(const PageLayout& layout, const VectorLayout& vector, const std::vector<float>& features,
                     PageView page) {
  const float* scale = layout.numbers_at(vector.scale);
  std::vector<float> u(vector.dim);
  for (int token = 0; token < layout.page_tokens; ++token) {
    for (int f = 0; f < vector.dim; ++f) {
      const float y = features[static_cast<size_t>(token) * vector.dim + f];
      u[f] = scale == nullptr ? y : y / scale[f];
    }
    float norm = 1;
    if (vector.num_scalars > 0) {
      scalars_of(vector, page)[token] = embedded_row_scalar(u, vector.norm_edge);
      norm = bf16_to_f32(scalars_of(vector, page)[token]);
    }
    for (int f = 0; f < vector.dim; ++f) {
      const int bits = group_bits(layout, vector, f);
      if (bits == 0) continue;
      const uint8_t code = embedded_code(norm > 0.0f ? u[f] / norm : 0.0f);
      write_code(layout, vector, page, token, f, code >> (8 - bits), bits);
    }
  }
}

// minimum + step * code, code = round((y - minimum) / step), step = (maximum - minimum) / (2^bits - 1), over
// each block (KIVI, arXiv:2402.02750; MiniKV, arXiv:2411.18077). Minimum and step are rounded to f16 first.
void encode_affine(const PageLayout& layout, const VectorLayout& vector, const std::vector<float>& features,
                   PageView page) {
  const int tokens = vector.axis == ScaleAxis::kChannel ? vector.scale_span : 1;
  const int span = vector.axis == ScaleAxis::kChannel ? 1 : vector.scale_span;
  for (int t0 = 0; t0 < layout.page_tokens; t0 += tokens) {
    for (int f0 = 0; f0 < vector.dim; f0 += span) {
      const int bits = group_bits(layout, vector, f0), f1 = std::min<int>(f0 + span, vector.dim);
      float low = INFINITY, high = -INFINITY;
      for (int t = t0; t < t0 + tokens; ++t) {
        for (int f = f0; f < f1; ++f) {
          const float y = features[static_cast<size_t>(t) * vector.dim + f];
          low = std::min(low, y);
          high = std::max(high, y);
        }
      }
      const int most = (1 << bits) - 1;
      uint16_t* pair = pair_of(layout, vector, page, t0, f0);
      pair[0] = f32_to_f16(low);
      pair[1] = f32_to_f16(bits == 0 ? 0 : (high - low) / static_cast<float>(most));
      const float minimum = f16_to_f32(pair[0]), step = f16_to_f32(pair[1]);
      for (int t = t0; t < t0 + tokens; ++t) {
        for (int f = f0; f < f1 && bits > 0; ++f) {
          const float y = features[static_cast<size_t>(t) * vector.dim + f];
          const float code = step > 0 ? std::nearbyint((y - minimum) / step) : 0.0f;
          write_code(layout, vector, page, t, f, static_cast<uint32_t>(std::clamp<float>(code, 0, most)),
                     bits);
        }
      }
    }
  }
}

float decode_element(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels,
                     int token, int feature) {
  const Code code = read_code(layout, vector, page, levels, token, feature);
  if (code.bits == 0) return 0;
  switch (vector.quantizer) {
    case Quantizer::kFull:
      return element_value(code.value, layout.dtype);
    case Quantizer::kAffine: {
      const uint16_t* pair = pair_of(layout, vector, page, token, feature);
      return f16_to_f32(pair[0]) + f16_to_f32(pair[1]) * static_cast<float>(code.value);
    }
    case Quantizer::kEmbedded:
      break;
  }
  const float norm = vector.num_scalars > 0 ? bf16_to_f32(scalars_of(vector, page)[token]) : 1.0f;
  const float* scale = layout.numbers_at(vector.scale);
  return embedded_value(static_cast<uint8_t>(code.value), code.bits) * norm *
         (scale == nullptr ? 1.0f : scale[feature]);
}

}  // namespace

void encode_vector(const PageLayout& layout, const VectorLayout& vector,
                   std::span<const std::byte* const> head_rows, PageView page) {
  LOWKEY_CHECK(head_rows.size() == vector.num_heads, "rows of {} heads for {}", head_rows.size(),
               vector.num_heads);
  const std::vector<float> features = features_of(layout, vector, head_rows);
  if (vector.quantizer == Quantizer::kEmbedded) return encode_embedded(layout, vector, features, page);
  if (vector.quantizer == Quantizer::kAffine) return encode_affine(layout, vector, features, page);
  for (int token = 0; token < layout.page_tokens; ++token) {
    for (int f = 0; f < vector.dim; ++f) {
      const int bits = group_bits(layout, vector, f);
      if (bits == 0) continue;
      const float y = features[static_cast<size_t>(token) * vector.dim + f];
      write_code(layout, vector, page, token, f, full_bits(layout.dtype, y), bits);
    }
  }
}

void decode_features(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels,
                     float* features) {
  LOWKEY_CHECK(levels >= 1 && levels <= layout.num_levels, "levels {} of {}", levels, layout.num_levels);
  for (int token = 0; token < layout.page_tokens; ++token) {
    for (int f = 0; f < vector.dim; ++f) *features++ = decode_element(layout, vector, page, levels, token, f);
  }
}

void decode_vector(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels,
                   float* rows) {
  std::vector<float> features(static_cast<size_t>(layout.page_tokens) * vector.dim);
  decode_features(layout, vector, page, levels, features.data());
  const float* decode = layout.numbers_at(vector.decode);
  const float* mean = layout.numbers_at(vector.mean);
  for (int token = 0; token < layout.page_tokens; ++token) {
    const float* y = features.data() + static_cast<size_t>(token) * vector.dim;
    float* row = rows + static_cast<size_t>(token) * vector.input_dim;
    for (int i = 0; i < vector.input_dim; ++i) {
      float value = mean == nullptr ? 0.0f : mean[i];
      if (decode == nullptr) value += y[i];
      for (int j = 0; decode != nullptr && j < vector.dim; ++j)
        value += decode[static_cast<size_t>(j) * vector.input_dim + i] * y[j];
      row[i] = value;
    }
  }
}

void write_sink(const PageLayout& layout, const RowsLayout& where, const std::byte* rows,
                std::byte* sink_slab) {
  LOWKEY_CHECK(layout.sink_tokens > 0, "layout without sink");
  std::memcpy(sink_slab + where.sink_offset, rows,
              static_cast<size_t>(layout.sink_tokens) * layout.head_dim * dtype_bytes(layout.dtype));
}

}  // namespace lowkey::kernels
