#include "kernels/page/page_spec_check.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace lowkey::kernels {
namespace {

constexpr int kMaxPageTokens = 1024;

Status check_shape(const PageSpec& spec, const CacheShape& shape) {
  if (shape.num_banks < 1 || shape.num_banks > std::numeric_limits<uint16_t>::max()) {
    return bad_page_spec(spec, fmt::format("number of banks: expected 1 to 65535, found {}", shape.num_banks),
                         "num_banks");
  }
  if (shape.num_kv_heads < 1 || shape.num_kv_heads > std::numeric_limits<uint16_t>::max()) {
    return bad_page_spec(spec,
                         fmt::format("local KV heads: expected 1 to 65535, found {}", shape.num_kv_heads),
                         "num_kv_heads");
  }
  constexpr int kMaxDim = kMaxGroups * kGroupFeatures;
  if (shape.head_dim < 4 || shape.head_dim % 4 != 0 || shape.head_dim > kMaxDim) {
    return bad_page_spec(
        spec, fmt::format("head_dim: expected a multiple of 4 up to {}, found {}", kMaxDim, shape.head_dim),
        "head_dim");
  }
  return {};
}

int sum_of(const std::array<uint8_t, kMaxLevels>& bits) {
  return bits[0] + bits[1] + bits[2];
}

Status check_numbers(const PageSpec& spec, const VectorSpec& vector, int input_dim, int dim) {
  const auto check = [&](const char* what, const std::vector<float>& found, size_t expected) -> Status {
    if (!found.empty() && found.size() != expected)
      return bad_page_spec(
          spec, fmt::format("{}: expected {} numbers, found {}", what, expected, found.size()), what);
    for (float x : found) {
      if (!std::isfinite(x))
        return bad_page_spec(spec, fmt::format("{}: expected finite numbers, found {}", what, x), what);
    }
    return {};
  };
  LOWKEY_TRY(check("basis", vector.encode, size_t(dim) * input_dim));
  LOWKEY_TRY(check("decoding basis", vector.decode, size_t(dim) * input_dim));
  LOWKEY_TRY(check("mean", vector.mean, input_dim));
  LOWKEY_TRY(check("scale", vector.scale, dim));
  if (vector.encode.empty() != vector.decode.empty() && dim > 0)
    return bad_page_spec(spec, "basis: expected an encoding and a decoding half, found one", "basis");
  if (vector.encode.empty() && dim != input_dim && dim > 0)
    return bad_page_spec(
        spec, fmt::format("features: {} of {}: expected a basis, found none", dim, input_dim), "keep");
  if (!vector.scale.empty() && vector.quantizer != Quantizer::kEmbedded)
    return bad_page_spec(spec, "scale: expected embedded codes with static scales, found others", "scale");
  for (float scale : vector.scale) {
    if (!(scale > 0))
      return bad_page_spec(spec, fmt::format("scale: expected > 0, found {}", scale), "scale");
  }
  return {};
}

// The blocks that share a pair of affine codes.
Status check_blocks(const PageSpec& spec, const VectorSpec& vector, int dim) {
  if (vector.axis == ScaleAxis::kNone)
    return bad_page_spec(spec, "bits.axis: expected token or channel, found none", "axis");
  const int most = vector.axis == ScaleAxis::kChannel ? spec.page_tokens : kMaxGroups * kGroupFeatures;
  if (vector.scale_span < 1 || vector.scale_span > most)
    return bad_page_spec(spec, fmt::format("bits.group: expected 1 to {}, found {}", most, vector.scale_span),
                         "group");
  if (vector.axis == ScaleAxis::kChannel) return {};
  for (int f = 1; f < dim; ++f) {
    const int width = sum_of(vector.bits[f / kGroupFeatures]);
    const int before = sum_of(vector.bits[(f - 1) / kGroupFeatures]);
    if (f % vector.scale_span != 0 && width != before)
      return bad_page_spec(
          spec,
          fmt::format("bits.group: features {} and {} share a scale: expected {} bits, found {}", f - 1, f,
                      before, width),
          "group");
  }
  return {};
}

Status check_widths(const PageSpec& spec, const VectorSpec& vector, int dim) {
  for (size_t g = 0; g < vector.bits.size(); ++g) {
    const auto& bits = vector.bits[g];
    const int total = sum_of(bits);
    for (int level = spec.num_levels; level < kMaxLevels; ++level) {
      if (bits[level] != 0)
        return bad_page_spec(spec,
                             fmt::format("group {}: expected bits in {} levels, found some in level {}", g,
                                         spec.num_levels, level),
                             "width");
    }
    if (vector.quantizer == Quantizer::kFull) {
      if (total != 0 && total != kFullBits)
        return bad_page_spec(spec, fmt::format("group {}: expected full or nothing, found {} bits", g, total),
                             "width");
      continue;
    }
    if (total > 8)
      return bad_page_spec(spec, fmt::format("group {}: expected 0 to 8 bits, found {}", g, total), "width");
    if (vector.quantizer == Quantizer::kAffine && total != std::max({bits[0], bits[1], bits[2]}))
      return bad_page_spec(
          spec, fmt::format("group {}: expected affine codes in one level, found them cut between bits", g),
          "levels");
  }
  if (vector.quantizer == Quantizer::kAffine) LOWKEY_TRY(check_blocks(spec, vector, dim));
  if (vector.quantizer == Quantizer::kEmbedded && !(vector.norm_edge > 0))
    return bad_page_spec(spec, fmt::format("edge: expected > 0, found {}", vector.norm_edge), "edge");
  return {};
}

}  // namespace

Error bad_page_spec(const PageSpec& spec, std::string what, std::string param) {
  return Error{Code::kUsage, fmt::format("recipe {}: {}", spec.recipe, what), std::move(param)};
}

Status check_page_spec(const PageSpec& spec, const CacheShape& shape) {
  LOWKEY_TRY(check_shape(spec, shape));
  if (spec.page_tokens < 4 || spec.page_tokens % 4 != 0 || spec.page_tokens > kMaxPageTokens) {
    return bad_page_spec(spec,
                         fmt::format("page_tokens: expected a multiple of 4 up to {}, found {}",
                                     kMaxPageTokens, spec.page_tokens),
                         "page_tokens");
  }
  if (spec.sink_tokens < 0 || spec.sink_tokens > spec.page_tokens) {
    return bad_page_spec(
        spec,
        fmt::format("hot.sink: expected 0 to page_tokens ({}), found {}", spec.page_tokens, spec.sink_tokens),
        "sink");
  }
  if (spec.num_levels < 1 || spec.num_levels > kMaxLevels) {
    return bad_page_spec(
        spec, fmt::format("stream.levels: expected 1 to {}, found {}", kMaxLevels, spec.num_levels),
        "levels");
  }
  if (spec.join < 1 || shape.num_kv_heads % spec.join != 0) {
    return bad_page_spec(spec,
                         fmt::format("heads.join: expected a divisor of the {} local KV heads, found {}",
                                     shape.num_kv_heads, spec.join),
                         "join");
  }
  if (spec.join * shape.head_dim > kMaxGroups * kGroupFeatures) {
    return bad_page_spec(spec,
                         fmt::format("heads.join: expected at most {} joined features, found {} heads of {}",
                                     kMaxGroups * kGroupFeatures, spec.join, shape.head_dim),
                         "join");
  }
  const size_t vectors = size_t(shape.num_banks) * 2 * (shape.num_kv_heads / spec.join);
  if (!spec.vectors.empty() && spec.vectors.size() != vectors) {
    return bad_page_spec(
        spec, fmt::format("expected {} stored vectors, found {}", vectors, spec.vectors.size()), "");
  }
  return {};
}

Status check_vector_spec(const PageSpec& spec, const VectorSpec& vector, int input_dim, int dim) {
  LOWKEY_TRY(check_numbers(spec, vector, input_dim, dim));
  return check_widths(spec, vector, dim);
}

}  // namespace lowkey::kernels
