#include "kernels/page/page_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/check.h"
#include "kernels/page/affine_quantizer.h"
#include "kernels/page/dtype.h"
#include "kernels/page/embedded_quantizer.h"
#include "kernels/page/plane_codes.h"

namespace lowkey::kernels {
namespace {

// All of one vector of one page at a time: features [page_tokens][dim] in, codes [page_tokens][dim] out, or
// the other way round.
struct Codes {
  const PageLayout& layout;
  const VectorLayout& vector;
  std::vector<PlaneGroup> groups = groups_of(layout, vector);
  std::vector<uint32_t> values = std::vector<uint32_t>(static_cast<size_t>(layout.page_tokens) * vector.dim);

  size_t index(int token, int feature) const { return static_cast<size_t>(token) * vector.dim + feature; }
};

uint16_t* norms_of(const VectorLayout& vector, PageView page) {
  return reinterpret_cast<uint16_t*>(page.slabs[0] + vector.scalars_offset);
}

// y = encode (x - mean). Sums start at 0 and run over the inputs in ascending order with fused multiply-adds.
void map_row(const PageLayout& layout, const VectorLayout& vector, const float* centred, float* y) {
  const float* encode = layout.numbers_at(vector.encode);
  if (encode == nullptr) {
    std::copy_n(centred, vector.dim, y);
    return;
  }
  for (int j = 0; j < vector.dim; ++j) {
    const float* weights = encode + static_cast<size_t>(j) * vector.input_dim;
    float sum = 0;
    for (int i = 0; i < vector.input_dim; ++i) sum = std::fma(weights[i], centred[i], sum);
    y[j] = sum;
  }
}

// All rows of the page as features, [page_tokens][dim].
std::vector<float> features_of(const PageLayout& layout, const VectorLayout& vector,
                               std::span<const std::byte* const> head_rows) {
  std::vector<float> features(static_cast<size_t>(layout.page_tokens) * vector.dim), row(vector.input_dim);
  const float* mean = layout.numbers_at(vector.mean);
  for (int token = 0; token < layout.page_tokens; ++token) {
    for (int i = 0; i < vector.input_dim; ++i) {
      row[i] = load_element(head_rows[i / layout.head_dim], layout.dtype,
                            static_cast<size_t>(token) * layout.head_dim + i % layout.head_dim);
      if (mean != nullptr) row[i] -= mean[i];
    }
    map_row(layout, vector, row.data(), features.data() + static_cast<size_t>(token) * vector.dim);
  }
  return features;
}

void encode_full(const std::vector<float>& features, Codes& codes) {
  for (size_t i = 0; i < features.size(); ++i)
    store_element(&codes.values[i], codes.layout.dtype, 0, features[i]);
}

// u = y / scale, norm from u, code of u / norm.
void encode_embedded(const std::vector<float>& features, PageView page, Codes& codes) {
  const VectorLayout& vector = codes.vector;
  const float* scale = codes.layout.numbers_at(vector.scale);
  std::vector<float> u(vector.dim);
  for (int token = 0; token < codes.layout.page_tokens; ++token) {
    for (int f = 0; f < vector.dim; ++f) {
      u[f] = features[codes.index(token, f)];
      if (scale != nullptr) u[f] *= 1.0f / scale[f];
    }
    float norm = 1;
    if (vector.num_scalars > 0) {
      norms_of(vector, page)[token] = embedded_row_scalar(u, vector.norm_edge);
      norm = bf16_to_f32(norms_of(vector, page)[token]);
    }
    for (const PlaneGroup& group : codes.groups) {
      for (int f = group.feature; f < group.feature + group.features; ++f) {
        const uint8_t code = embedded_code(norm > 0.0f ? u[f] / norm : 0.0f);
        codes.values[codes.index(token, f)] = code >> (8 - group.bits);
      }
    }
  }
}

// The elements that share an affine pair.
struct Block {
  int first_token, end_token, first_feature, end_feature;
  size_t pair;  // index
};

template <class Function>
void for_each_block(const PageLayout& layout, const VectorLayout& vector, const Function& function) {
  const bool channel = vector.axis == ScaleAxis::kChannel;
  const int tokens = channel ? vector.scale_span : 1, features = channel ? 1 : vector.scale_span;
  for (int t = 0; t < layout.page_tokens; t += tokens) {
    for (int f = 0; f < vector.dim; f += features) {
      const size_t pair = channel ? static_cast<size_t>(t / tokens) * vector.dim + f
                                  : static_cast<size_t>(f / features) * layout.page_tokens + t;
      function(Block{t, std::min(t + tokens, layout.page_tokens), f, std::min<int>(f + features, vector.dim),
                     pair});
    }
  }
}

AffinePair* pairs_of(const VectorLayout& vector, PageView page) {
  return reinterpret_cast<AffinePair*>(page.slabs[0] + vector.scales_offset);
}

void encode_affine(const std::vector<float>& features, PageView page, Codes& codes) {
  for_each_block(codes.layout, codes.vector, [&](const Block& block) {
    const int bits = codes.groups[block.first_feature / kGroupFeatures].bits;
    float low = INFINITY, high = -INFINITY;
    for (int t = block.first_token; t < block.end_token; ++t) {
      for (int f = block.first_feature; f < block.end_feature; ++f) {
        low = std::min(low, features[codes.index(t, f)]);  // NaN changes neither
        high = std::max(high, features[codes.index(t, f)]);
      }
    }
    const AffinePair pair = affine_pair(low, high, bits);
    pairs_of(codes.vector, page)[block.pair] = pair;
    const float minimum = f16_to_f32(pair.minimum), step = f16_to_f32(pair.step);
    for (int t = block.first_token; t < block.end_token; ++t) {
      for (int f = block.first_feature; f < block.end_feature; ++f)
        codes.values[codes.index(t, f)] = affine_code(features[codes.index(t, f)], minimum, step, bits);
    }
  });
}

float full_value(uint32_t bits, DType dtype) {
  float value;
  if (dtype == DType::kF32) return std::bit_cast<float>(bits);
  value = dtype == DType::kBf16 ? bf16_to_f32(static_cast<uint16_t>(bits))
                                : f16_to_f32(static_cast<uint16_t>(bits));
  return value;
}

void decode_embedded(PageView page, int levels, const Codes& codes, float* features) {
  const VectorLayout& vector = codes.vector;
  const float* scale = codes.layout.numbers_at(vector.scale);
  for (const PlaneGroup& group : codes.groups) {
    const int bits = group.bits_of(levels);
    for (int t = 0; t < codes.layout.page_tokens && bits > 0; ++t) {
      const float norm = vector.num_scalars > 0 ? bf16_to_f32(norms_of(vector, page)[t]) : 1.0f;
      for (int f = group.feature; f < group.feature + group.features; ++f) {
        const size_t i = codes.index(t, f);
        features[i] = embedded_value(static_cast<uint8_t>(codes.values[i]), bits) * norm;
        if (scale != nullptr) features[i] *= scale[f];
      }
    }
  }
}

void decode_affine(PageView page, int levels, const Codes& codes, float* features) {
  for_each_block(codes.layout, codes.vector, [&](const Block& block) {
    if (codes.groups[block.first_feature / kGroupFeatures].bits == 0) return;
    const AffinePair pair = pairs_of(codes.vector, page)[block.pair];
    for (int t = block.first_token; t < block.end_token; ++t) {
      for (int f = block.first_feature; f < block.end_feature; ++f) {
        if (codes.groups[f / kGroupFeatures].bits_of(levels) == 0) continue;
        const size_t i = codes.index(t, f);
        features[i] = f16_to_f32(pair.minimum) + f16_to_f32(pair.step) * static_cast<float>(codes.values[i]);
      }
    }
  });
}

void decode_full(int levels, const Codes& codes, float* features) {
  for (const PlaneGroup& group : codes.groups) {
    for (int t = 0; t < codes.layout.page_tokens && group.bits_of(levels) > 0; ++t) {
      for (int f = group.feature; f < group.feature + group.features; ++f)
        features[codes.index(t, f)] = full_value(codes.values[codes.index(t, f)], codes.layout.dtype);
    }
  }
}

}  // namespace

void encode_vector(const PageLayout& layout, const VectorLayout& vector,
                   std::span<const std::byte* const> head_rows, PageView page) {
  LOWKEY_CHECK(head_rows.size() == vector.num_heads, "rows of {} heads for {}", head_rows.size(),
               vector.num_heads);
  const std::vector<float> features = features_of(layout, vector, head_rows);
  Codes codes{layout, vector};
  if (vector.quantizer == Quantizer::kFull) encode_full(features, codes);
  if (vector.quantizer == Quantizer::kEmbedded) encode_embedded(features, page, codes);
  if (vector.quantizer == Quantizer::kAffine) encode_affine(features, page, codes);
  for (const PlaneGroup& group : codes.groups)
    write_codes(layout, vector, group, codes.values.data(), page.slabs);
}

void decode_features(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels,
                     float* features) {
  LOWKEY_CHECK(levels >= 1 && levels <= layout.num_levels, "levels {} of {}", levels, layout.num_levels);
  Codes codes{layout, vector};
  for (const PlaneGroup& group : codes.groups)
    read_codes(layout, vector, group, page.slabs, levels, codes.values.data());
  std::fill_n(features, codes.values.size(), 0.0f);
  if (vector.quantizer == Quantizer::kFull) decode_full(levels, codes, features);
  if (vector.quantizer == Quantizer::kEmbedded) decode_embedded(page, levels, codes, features);
  if (vector.quantizer == Quantizer::kAffine) decode_affine(page, levels, codes, features);
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
    for (int i = 0; i < vector.input_dim; ++i) row[i] = mean == nullptr ? 0.0f : mean[i];
    for (int j = 0; j < vector.dim; ++j) {
      if (decode == nullptr) {
        row[j] += y[j];
        continue;
      }
      const float* weights = decode + static_cast<size_t>(j) * vector.input_dim;
      for (int i = 0; i < vector.input_dim; ++i) row[i] += weights[i] * y[j];
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
