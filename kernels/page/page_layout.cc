#include "kernels/page/page_layout.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <iterator>
#include <limits>

namespace lowkey::kernels {
namespace {

// Vectors start on cache lines, so that no two vectors share one; slabs are whole cache lines.
constexpr uint64_t kAlignment = 64;
constexpr int kMaxPageTokens = 1024;

uint64_t align_up(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

Error bad_spec(const PageSpec& spec, std::string what, std::string param) {
  return Error{Code::kUsage, fmt::format("recipe {}: {}", spec.recipe, what), std::move(param)};
}

// Elements of `bits` bits in one 32-bit word: the innermost extent of a plane.
int elements_per_word(int bits) {
  return 32 / bits;
}

Status check_shape(const PageSpec& spec, const CacheShape& shape) {
  if (shape.num_banks < 1 || shape.num_banks > std::numeric_limits<uint16_t>::max()) {
    return bad_spec(spec, fmt::format("number of banks: expected 1 to 65535, found {}", shape.num_banks),
                    "num_banks");
  }
  if (shape.num_kv_heads < 1 || shape.num_kv_heads > std::numeric_limits<uint16_t>::max()) {
    return bad_spec(spec, fmt::format("local KV heads: expected 1 to 65535, found {}", shape.num_kv_heads),
                    "num_kv_heads");
  }
  constexpr int kMaxDim = kMaxGroups * kGroupFeatures;
  if (shape.head_dim < 4 || shape.head_dim % 4 != 0 || shape.head_dim > kMaxDim) {
    return bad_spec(
        spec, fmt::format("head_dim: expected a multiple of 4 up to {}, found {}", kMaxDim, shape.head_dim),
        "head_dim");
  }
  return {};
}

Status check_spec(const PageSpec& spec, const CacheShape& shape) {
  LOWKEY_TRY(check_shape(spec, shape));
  if (spec.page_tokens < 4 || spec.page_tokens % 4 != 0 || spec.page_tokens > kMaxPageTokens) {
    return bad_spec(spec,
                    fmt::format("page_tokens: expected a multiple of 4 up to {}, found {}", kMaxPageTokens,
                                spec.page_tokens),
                    "page_tokens");
  }
  if (spec.sink_tokens < 0 || spec.sink_tokens > spec.page_tokens) {
    return bad_spec(
        spec,
        fmt::format("hot.sink: expected 0 to page_tokens ({}), found {}", spec.page_tokens, spec.sink_tokens),
        "sink");
  }
  if (spec.quantizer == Quantizer::kFull) {
    if (spec.bits == 0) return {};
    return bad_spec(spec, fmt::format("bits.width: expected 0 with full planes, found {}", spec.bits),
                    "width");
  }
  if (spec.bits != 2 && spec.bits != 4 && spec.bits != 8) {
    return bad_spec(spec, fmt::format("bits.width: expected 2, 4 or 8 when embedded, found {}", spec.bits),
                    "width");
  }
  const int n = elements_per_word(spec.bits);
  if (shape.head_dim % n != 0 || spec.page_tokens % n != 0) {
    return bad_spec(
        spec,
        fmt::format("bits.width {} packs {} elements to a word: expected head_dim and page_tokens "
                    "to be multiples of it, found {} and {}",
                    spec.bits, n, shape.head_dim, spec.page_tokens),
        "width");
  }
  return {};
}

// Appends the vector's planes at `offset` of the level-0 slab and returns the offset behind them.
uint64_t add_planes(PageLayout& layout, VectorLayout& vector, int bits, uint64_t offset) {
  vector.first_plane = static_cast<uint32_t>(layout.planes.size());
  for (int feature = 0; feature < vector.dim; feature += kGroupFeatures) {
    Plane plane;
    plane.feature = static_cast<uint16_t>(feature);
    plane.features = static_cast<uint16_t>(std::min<int>(kGroupFeatures, vector.dim - feature));
    plane.bits = static_cast<uint8_t>(bits);
    plane.offset = static_cast<uint32_t>(offset);
    plane.bytes = static_cast<uint32_t>(plane.features * layout.page_tokens * bits / 8);
    offset += plane.bytes;
    layout.planes.push_back(plane);
  }
  vector.num_planes = static_cast<uint16_t>(layout.planes.size() - vector.first_plane);
  return offset;
}

struct Offsets {
  uint64_t slab = 0;
  uint64_t tail = 0;
  uint64_t sink = 0;
};

void add_vector(PageLayout& layout, int bits, int bank, Side side, int head, Offsets& offsets) {
  VectorLayout vector;
  vector.side = side;
  vector.quantizer = layout.quantizer;
  vector.bank = static_cast<uint16_t>(bank);
  vector.head = static_cast<uint16_t>(head);
  vector.dim = static_cast<uint16_t>(layout.head_dim);
  vector.scalars_offset = static_cast<uint32_t>(offsets.slab);
  vector.num_scalars = layout.quantizer == Quantizer::kEmbedded ? 1 : 0;
  const uint64_t scalar_bytes = uint64_t{2} * vector.num_scalars * layout.page_tokens;
  offsets.slab = align_up(add_planes(layout, vector, bits, offsets.slab + align_up(scalar_bytes)));
  vector.tail_offset = static_cast<uint32_t>(offsets.tail);
  vector.sink_offset = static_cast<uint32_t>(offsets.sink);
  const uint64_t row_bytes = uint64_t{vector.dim} * dtype_bytes(layout.dtype);
  offsets.tail = align_up(offsets.tail + layout.page_tokens * row_bytes);
  offsets.sink = align_up(offsets.sink + layout.sink_tokens * row_bytes);
  layout.vectors.push_back(vector);
}

}  // namespace

Result<PageLayout> PageLayout::make(const PageSpec& spec, const CacheShape& shape) {
  LOWKEY_TRY(check_spec(spec, shape));
  PageLayout layout;
  layout.page_tokens = spec.page_tokens;
  layout.sink_tokens = spec.sink_tokens;
  layout.num_levels = 1;
  layout.num_banks = shape.num_banks;
  layout.num_kv_heads = shape.num_kv_heads;
  layout.head_dim = shape.head_dim;
  layout.dtype = shape.dtype;
  layout.quantizer = spec.quantizer;
  layout.recipe = spec.recipe;
  const int bits =
      spec.quantizer == Quantizer::kFull ? static_cast<int>(dtype_bytes(shape.dtype)) * 8 : spec.bits;

  // Offsets are 32-bit: bound the largest one (f32 rows) before building the tables.
  const uint64_t rows = uint64_t{2} * shape.num_banks * shape.num_kv_heads * spec.page_tokens;
  const uint64_t most_bytes = rows * (uint64_t{4} * shape.head_dim + 2 * kAlignment);
  if (most_bytes > std::numeric_limits<uint32_t>::max()) {
    return bad_spec(spec, fmt::format("page of up to {} bytes: expected less than 4 GiB", most_bytes), "");
  }

  Offsets offsets;
  for (int bank = 0; bank < shape.num_banks; ++bank) {
    for (Side side : {Side::kKey, Side::kValue}) {
      for (int head = 0; head < shape.num_kv_heads; ++head)
        add_vector(layout, bits, bank, side, head, offsets);
    }
  }
  layout.slab_bytes[0] = static_cast<uint32_t>(offsets.slab);
  layout.slab_bytes[layout.num_levels] = static_cast<uint32_t>(offsets.sink);
  layout.tail_bytes = static_cast<uint32_t>(offsets.tail);
  return layout;
}

Hash128 PageLayout::fingerprint() const {
  // The recipe's name decides neither bytes nor values. Text, so that no padding is hashed.
  std::string text =
      fmt::format("{} {} {} {} {} {} {} {} {} {};", version, page_tokens, sink_tokens, num_levels, num_banks,
                  num_kv_heads, head_dim, static_cast<int>(dtype), static_cast<int>(quantizer), tail_bytes);
  auto out = std::back_inserter(text);
  for (uint32_t bytes : slab_bytes) fmt::format_to(out, "{} ", bytes);
  for (const VectorLayout& v : vectors) {
    fmt::format_to(out, "v{} {} {} {} {} {} {} {} {} {} {}", static_cast<int>(v.side),
                   static_cast<int>(v.quantizer), v.bank, v.head, v.dim, v.num_planes, v.first_plane,
                   v.scalars_offset, v.num_scalars, v.tail_offset, v.sink_offset);
  }
  for (const Plane& p : planes) {
    fmt::format_to(out, "p{} {} {} {} {} {}", p.offset, p.bytes, p.feature, p.features, p.bits, p.level);
  }
  return hash128(text);
}

uint64_t PageLayout::bytes_for_tokens(uint64_t tokens) const {
  if (tokens == 0) return 0;
  const uint64_t pages = tokens / page_tokens;
  uint64_t page_bytes = kPageHeaderBytes;
  for (int level = 0; level < num_levels; ++level) page_bytes += slab_bytes[level];
  return pages * page_bytes + (pages > 0 ? slab_bytes[sink_slab()] : 0) + tail_bytes;
}

double PageLayout::bytes_per_token() const {
  uint64_t page_bytes = kPageHeaderBytes;
  for (int level = 0; level < num_levels; ++level) page_bytes += slab_bytes[level];
  return static_cast<double>(page_bytes) / page_tokens;
}

uint64_t PageLayout::bf16_bytes_for_tokens(uint64_t tokens) const {
  return tokens * num_banks * 2 * num_kv_heads * head_dim * 2;
}

}  // namespace lowkey::kernels
