// What the tests of the page format share: poisoned pages, rows of every kind, random bases and specs.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/page/dtype.h"
#include "kernels/page/page_codec.h"

namespace lowkey::kernels::test {

// The slabs of one page, every byte `poison`.
struct Slabs {
  explicit Slabs(const PageLayout& layout, std::byte poison = std::byte{0xa5}) {
    for (int i = 0; i < kMaxSlabs; ++i) {
      memory[i].assign(layout.slab_bytes[i], poison);
      pointers[i] = memory[i].empty() ? nullptr : memory[i].data();
    }
  }
  Slabs(const Slabs&) = delete;
  std::vector<std::byte> memory[kMaxSlabs];
  std::byte* pointers[kMaxSlabs];
  PageView view() { return {pointers}; }
  float norm(const VectorLayout& vector, int token) const {
    uint16_t bits;
    std::memcpy(&bits, pointers[0] + vector.scalars_offset + 2 * token, 2);
    return bf16_to_f32(bits);
  }
};

enum class Rows { kNormal, kFlat, kRamp, kOutlier, kZero, kTiny, kDenormal };
inline constexpr Rows kAllRows[] = {Rows::kNormal, Rows::kFlat, Rows::kRamp,    Rows::kOutlier,
                                    Rows::kZero,   Rows::kTiny, Rows::kDenormal};

inline std::vector<float> make_rows(Rows kind, int tokens, int dim, uint64_t seed = 7) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> rows(static_cast<size_t>(tokens) * dim);
  for (int t = 0; t < tokens; ++t) {
    for (int f = 0; f < dim; ++f) {
      const float x = normal(random);
      float& out = rows[static_cast<size_t>(t) * dim + f];
      switch (kind) {
        case Rows::kNormal:
          out = x;
          break;
        case Rows::kFlat:
          out = 0.37f;
          break;
        case Rows::kRamp:
          out = static_cast<float>(f - dim / 2) * 0.01f * static_cast<float>(t + 1);
          break;
        case Rows::kOutlier:
          out = f == t % dim ? -80.0f : x;
          break;
        case Rows::kZero:
          out = 0;
          break;
        case Rows::kTiny:
          out = x * 1e-30f;
          break;
        case Rows::kDenormal:
          out = x * 1e-39f;
          break;
      }
    }
  }
  return rows;
}

inline std::vector<std::byte> to_dtype(const std::vector<float>& rows, DType dtype) {
  std::vector<std::byte> bytes(rows.size() * dtype_bytes(dtype));
  for (size_t i = 0; i < rows.size(); ++i) store_element(bytes.data(), dtype, i, rows[i]);
  return bytes;
}

// The rows of all heads of a layout's vectors, each [page_tokens][head_dim], other numbers in each head.
class HeadRows {
 public:
  HeadRows(const PageLayout& layout, Rows kind) {
    for (int head = 0; head < layout.num_kv_heads; ++head) {
      values.push_back(make_rows(kind, layout.page_tokens, layout.head_dim, 7 + head));
      bytes_.push_back(to_dtype(values.back(), layout.dtype));
      for (size_t i = 0; i < values.back().size(); ++i)
        values.back()[i] = load_element(bytes_.back().data(), layout.dtype, i);
      pointers_.push_back(bytes_.back().data());
    }
  }
  std::span<const std::byte* const> of(const VectorLayout& vector) const {
    return std::span(pointers_).subspan(vector.head, vector.num_heads);
  }
  // As rounded to the dtype.
  float value(const PageLayout& layout, const VectorLayout& vector, int token, int i) const {
    return values[vector.head + i / layout.head_dim]
                 [static_cast<size_t>(token) * layout.head_dim + i % layout.head_dim];
  }
  std::vector<std::vector<float>> values;

 private:
  std::vector<std::vector<std::byte>> bytes_;
  std::vector<const std::byte*> pointers_;
};

inline void encode_page(const PageLayout& layout, const HeadRows& rows, PageView page) {
  for (const VectorLayout& vector : layout.vectors) encode_vector(layout, vector, rows.of(vector), page);
}

// The first `dim` rows of a random orthonormal matrix [input_dim][input_dim] (Gram-Schmidt in f64).
inline std::vector<float> orthonormal_basis(int dim, int input_dim, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<std::vector<double>> rows;
  for (int j = 0; j < dim; ++j) {
    std::vector<double> row(input_dim);
    for (double& x : row) x = normal(random);
    for (int pass = 0; pass < 2; ++pass) {
      for (const auto& other : rows) {
        double dot = 0;
        for (int i = 0; i < input_dim; ++i) dot += row[i] * other[i];
        for (int i = 0; i < input_dim; ++i) row[i] -= dot * other[i];
      }
    }
    double square = 0;
    for (double x : row) square += x * x;
    for (double& x : row) x /= std::sqrt(square);
    rows.push_back(std::move(row));
  }
  std::vector<float> basis;
  for (const auto& row : rows) basis.insert(basis.end(), row.begin(), row.end());
  return basis;
}

inline void add_basis(VectorSpec& spec, int dim, int input_dim, uint64_t seed) {
  spec.encode = spec.decode = orthonormal_basis(dim, input_dim, seed);
  spec.mean = make_rows(Rows::kNormal, 1, input_dim, seed + 1);
}

using Widths = std::vector<std::array<uint8_t, kMaxLevels>>;

inline VectorSpec embedded(Widths bits) {
  VectorSpec spec{.quantizer = Quantizer::kEmbedded};
  spec.bits = std::move(bits);
  return spec;
}

inline VectorSpec affine(Widths bits, ScaleAxis axis, int span) {
  VectorSpec spec{.quantizer = Quantizer::kAffine};
  spec.bits = std::move(bits);
  spec.axis = axis;
  spec.scale_span = span;
  return spec;
}

// A spec and what it is for.
struct NamedSpec {
  std::string name;
  PageSpec spec;
  CacheShape shape;
};

// Every part of the format at least once.
inline std::vector<NamedSpec> all_specs(DType dtype) {
  std::vector<NamedSpec> specs;
  const auto add = [&](std::string name, CacheShape shape, VectorSpec key, VectorSpec value, int levels = 1,
                       int join = 1) {
    PageSpec spec{.recipe = name, .sink_tokens = 4, .num_levels = levels, .join = join};
    spec.key = std::move(key);
    spec.value = std::move(value);
    specs.push_back({std::move(name), std::move(spec), shape});
  };
  const CacheShape small{2, 2, 64, dtype}, ragged{2, 2, 20, dtype};
  for (uint8_t bits = 1; bits <= 8; ++bits) {
    const Widths widths(4, {bits, 0, 0});
    const std::string width = std::to_string(bits);
    add("embedded_" + width, small, embedded(widths), embedded(widths));
    add("embedded_ragged_" + width, ragged, embedded(widths), embedded(widths));
    for (ScaleAxis axis : {ScaleAxis::kChannel, ScaleAxis::kToken}) {
      const std::string name = (axis == ScaleAxis::kToken ? "token_" : "channel_") + width;
      add("affine_" + name, small, affine(widths, axis, 16), affine(widths, axis, 16));
      add("affine_ragged_" + name, ragged, affine(widths, axis, 12), affine(widths, axis, 7));
    }
  }
  add("full", small, {}, {});
  add("full_ragged", ragged, {}, {});
  VectorSpec half;
  half.bits = {{kFullBits}, {kFullBits}};
  add_basis(half, 32, 64, 1);
  add("full_half_rank", small, half, half);

  VectorSpec key = embedded({{4, 4, 0}, {4, 0, 2}, {2, 1, 1}, {0, 2, 3}});
  VectorSpec value = embedded({{2, 0, 2}, {1, 1, 0}, {0, 0, 0}});
  add_basis(key, 64, 64, 2);
  add_basis(value, 48, 64, 3);
  key.scale = make_rows(Rows::kFlat, 1, 64);
  value.norm = false;
  add("levels", small, key, value, 3);

  VectorSpec joined = embedded({{8}, {4}, {4}, {2}, {2}, {2}});
  add_basis(joined, 96, 128, 4);
  joined.norm_edge = 3;
  add("joined", small, joined, joined, 1, 2);

  VectorSpec cut = affine({{4, 0, 0}, {4, 0, 0}, {0, 2, 0}, {0, 2, 0}}, ScaleAxis::kToken, 32);
  add("affine_levels", small, cut, affine(cut.bits, ScaleAxis::kChannel, 32), 2);

  VectorSpec nothing = embedded({}), scalars = embedded({{8}, {8}, {8}, {8}});
  scalars.log_mass = scalars.position = true;
  add("nothing_of_values", small, scalars, nothing);
  return specs;
}

}  // namespace lowkey::kernels::test
