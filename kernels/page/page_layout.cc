#include "kernels/page/page_layout.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <limits>

#include "kernels/page/page_spec_check.h"

namespace lowkey::kernels {
namespace {

// Vectors start on cache lines, so that no two vectors share one; slabs are whole cache lines.
constexpr uint64_t kAlignment = 64;

uint64_t align_up(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

int num_groups(int dim) {
  return (dim + kGroupFeatures - 1) / kGroupFeatures;
}

int blocks_of(int extent, int span) {
  return (extent + span - 1) / span;
}

// Features that a stored vector keeps: all, or those up to the end of its last given group.
int stored_dim(const VectorSpec& vector, int input_dim) {
  if (vector.bits.empty() && vector.quantizer == Quantizer::kFull) return input_dim;
  return std::min<int>(input_dim, static_cast<int>(vector.bits.size()) * kGroupFeatures);
}

class Builder {
 public:
  Builder(const PageSpec& spec, PageLayout& layout) : spec_(spec), layout_(layout) {}

  Status add_vector(int bank, Side side, int index) {
    const VectorSpec& wanted = spec_of(bank, side, index);
    VectorLayout vector;
    vector.side = side;
    vector.quantizer = wanted.quantizer;
    vector.bank = static_cast<uint16_t>(bank);
    vector.head = static_cast<uint16_t>(index * layout_.join);
    vector.num_heads = static_cast<uint16_t>(layout_.join);
    vector.input_dim = static_cast<uint16_t>(layout_.join * layout_.head_dim);
    vector.dim = static_cast<uint16_t>(stored_dim(wanted, vector.input_dim));
    LOWKEY_TRY(check_vector_spec(spec_, wanted, vector.input_dim, vector.dim));
    if (wanted.quantizer == Quantizer::kEmbedded) {
      vector.num_scalars = wanted.norm && vector.dim > 0 ? 1 : 0;
      vector.norm_edge = wanted.norm_edge;
    }
    add_scales(wanted, vector);
    for (int level = 0; level < layout_.num_levels; ++level) slab_[level] = align_up(slab_[level]);
    add_planes(wanted, vector);
    for (int level = 0; level < layout_.num_levels; ++level) slab_[level] = align_up(slab_[level]);
    vector.encode = add_numbers(wanted.encode);
    vector.decode = wanted.decode == wanted.encode ? vector.encode : add_numbers(wanted.decode);
    vector.mean = add_numbers(wanted.mean);
    vector.scale = add_numbers(wanted.scale);
    layout_.vectors.push_back(vector);
    return {};
  }

  void add_rows() {
    const uint64_t row_bytes = uint64_t(layout_.head_dim) * dtype_bytes(layout_.dtype);
    for (int i = 0; i < layout_.num_banks * 2 * layout_.num_kv_heads; ++i) {
      layout_.rows.push_back({static_cast<uint32_t>(tail_), static_cast<uint32_t>(sink_)});
      tail_ = align_up(tail_ + layout_.page_tokens * row_bytes);
      sink_ = align_up(sink_ + layout_.sink_tokens * row_bytes);
    }
  }

  Status finish() {
    for (int level = 0; level < layout_.num_levels; ++level) {
      if (slab_[level] == 0)
        return bad_page_spec(
            spec_, fmt::format("stream.levels: expected planes in level {}, found none", level), "levels");
      layout_.slab_bytes[level] = static_cast<uint32_t>(slab_[level]);
    }
    layout_.slab_bytes[layout_.num_levels] = static_cast<uint32_t>(sink_);
    layout_.tail_bytes = static_cast<uint32_t>(tail_);
    return {};
  }

 private:
  const VectorSpec& spec_of(int bank, Side side, int index) const {
    if (spec_.vectors.empty()) return side == Side::kKey ? spec_.key : spec_.value;
    return spec_.vectors[(size_t(bank) * 2 + (side == Side::kValue)) * layout_.vectors_per_side() + index];
  }

  // Row scalars, then dynamic scales, both in level 0: every cut of the page needs them.
  void add_scales(const VectorSpec& wanted, VectorLayout& vector) {
    vector.scalars_offset = add_row_scalars(vector.num_scalars, 2);
    if (wanted.log_mass) vector.log_masses_offset = add_row_scalars(1, 4);
    if (wanted.position) vector.positions_offset = add_row_scalars(1, 4);
    if (wanted.quantizer != Quantizer::kAffine) return;
    vector.axis = wanted.axis;
    vector.scale_span = static_cast<uint16_t>(wanted.scale_span);
    vector.scales_offset = static_cast<uint32_t>(slab_[0]);
    const bool channel = wanted.axis == ScaleAxis::kChannel;
    const uint64_t blocks = blocks_of(channel ? layout_.page_tokens : vector.dim, wanted.scale_span);
    slab_[0] += blocks * (channel ? vector.dim : layout_.page_tokens) * 4;
  }

  uint32_t add_row_scalars(int count, int bytes) {
    const auto offset = static_cast<uint32_t>(slab_[0]);
    slab_[0] = align_up(slab_[0] + static_cast<uint64_t>(count) * bytes * layout_.page_tokens);
    return offset;
  }

  void add_planes(const VectorSpec& wanted, VectorLayout& vector) {
    vector.first_plane = static_cast<uint32_t>(layout_.planes.size());
    const int full = static_cast<int>(dtype_bytes(layout_.dtype)) * 8;
    for (int group = 0; group < num_groups(vector.dim); ++group) {
      for (int level = 0; level < layout_.num_levels; ++level) {
        int bits = wanted.bits.empty() ? (level == 0 ? full : 0) : wanted.bits[group][level];
        if (bits == kFullBits) bits = full;
        while (bits > 0) {  // one plane, or 4 + 2 + 1 bits where the width does not divide a word
          const int part = 32 % bits == 0 ? bits : bits > 4 ? 4 : 2;
          add_plane(vector, group, level, part);
          bits -= part;
        }
      }
    }
    vector.num_planes = static_cast<uint16_t>(layout_.planes.size() - vector.first_plane);
  }

  void add_plane(const VectorLayout& vector, int group, int level, int bits) {
    Plane plane;
    plane.feature = static_cast<uint16_t>(group * kGroupFeatures);
    plane.features = static_cast<uint16_t>(std::min<int>(kGroupFeatures, vector.dim - plane.feature));
    plane.bits = static_cast<uint8_t>(bits);
    plane.level = static_cast<uint8_t>(level);
    plane.offset = static_cast<uint32_t>(slab_[level]);
    plane.bytes = static_cast<uint32_t>(plane_bytes(vector.side, plane.features, layout_.page_tokens, bits));
    slab_[level] += plane.bytes;
    layout_.planes.push_back(plane);
  }

  int32_t add_numbers(const std::vector<float>& numbers) {
    if (numbers.empty()) return kNoNumbers;
    const auto index = static_cast<int32_t>(layout_.numbers.size());
    layout_.numbers.insert(layout_.numbers.end(), numbers.begin(), numbers.end());
    return index;
  }

  const PageSpec& spec_;
  PageLayout& layout_;
  std::array<uint64_t, kMaxLevels> slab_{};
  uint64_t tail_ = 0, sink_ = 0;
};

}  // namespace

uint64_t plane_bytes(Side side, int features, int page_tokens, int bits) {
  const int n = 32 / bits;
  const auto words = [n](int extent) { return uint64_t(extent + n - 1) / n; };
  return 4 * (side == Side::kKey ? words(features) * page_tokens : words(page_tokens) * features);
}

PageSpec PageSpec::embedded(std::string recipe, int bits, int sink_tokens) {
  PageSpec spec{.recipe = std::move(recipe), .sink_tokens = sink_tokens};
  // As many groups as any vector has; stored_dim() takes what is there.
  spec.key.quantizer = Quantizer::kEmbedded;
  spec.key.bits.assign(kMaxGroups, {static_cast<uint8_t>(bits)});
  spec.value = spec.key;
  return spec;
}

Result<PageLayout> PageLayout::make(const PageSpec& spec, const CacheShape& shape) {
  LOWKEY_TRY(check_page_spec(spec, shape));
  PageLayout layout;
  static std::atomic<uint64_t> last_id{0};
  layout.id = ++last_id;
  layout.page_class = spec.page_class;
  layout.page_tokens = spec.page_tokens;
  layout.sink_tokens = spec.sink_tokens;
  layout.num_levels = spec.num_levels;
  layout.num_banks = shape.num_banks;
  layout.num_kv_heads = shape.num_kv_heads;
  layout.head_dim = shape.head_dim;
  layout.join = spec.join;
  layout.dtype = shape.dtype;
  layout.recipe = spec.recipe;

  // Offsets are 32-bit: bound the largest one (f32 rows, a scale for each) before building the tables.
  const uint64_t rows = uint64_t{2} * shape.num_banks * shape.num_kv_heads * spec.page_tokens;
  const uint64_t most_bytes = rows * (uint64_t{8} * shape.head_dim + 4 * kAlignment);
  if (most_bytes > std::numeric_limits<uint32_t>::max()) {
    return bad_page_spec(spec, fmt::format("page of up to {} bytes: expected less than 4 GiB", most_bytes),
                         "");
  }

  Builder builder(spec, layout);
  for (int bank = 0; bank < shape.num_banks; ++bank) {
    for (Side side : {Side::kKey, Side::kValue}) {
      for (int index = 0; index < layout.vectors_per_side(); ++index)
        LOWKEY_TRY(builder.add_vector(bank, side, index));
    }
  }
  builder.add_rows();
  LOWKEY_TRY(builder.finish());
  return layout;
}

void PageLayout::pad_slabs(const std::array<uint32_t, kMaxSlabs>& longest) {
  for (int slab = 0; slab < kMaxSlabs; ++slab) slab_bytes[slab] = std::max(slab_bytes[slab], longest[slab]);
}

Hash128 PageLayout::fingerprint() const {
  // The recipe's name decides neither bytes nor values. Text, so that no padding is hashed.
  std::string text =
      fmt::format("{} {} {} {} {} {} {} {} {} {} {};", version, page_class, page_tokens, sink_tokens,
                  num_levels, num_banks, num_kv_heads, head_dim, join, static_cast<int>(dtype), tail_bytes);
  auto out = std::back_inserter(text);
  for (uint32_t bytes : slab_bytes) fmt::format_to(out, "{} ", bytes);
  for (const VectorLayout& v : vectors) {
    fmt::format_to(out, "v{} {} {} {} {} {} {} {} {} {} ", static_cast<int>(v.side),
                   static_cast<int>(v.quantizer), static_cast<int>(v.axis), v.bank, v.head, v.num_heads,
                   v.input_dim, v.dim, v.num_planes, v.first_plane);
    fmt::format_to(out, "{} {} {} {} {} {} {} {} {}", v.scalars_offset, v.num_scalars, v.scale_span,
                   v.scales_offset, v.norm_edge, v.encode, v.decode, v.mean, v.scale);
    fmt::format_to(out, " {} {} {} ", v.log_masses_offset, v.positions_offset, v.from_key);
  }
  for (const RowsLayout& r : rows) fmt::format_to(out, "r{} {}", r.tail_offset, r.sink_offset);
  for (const Plane& p : planes) {
    fmt::format_to(out, "p{} {} {} {} {} {}", p.offset, p.bytes, p.feature, p.features, p.bits, p.level);
  }
  text.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(float));
  return hash128(text);
}

uint64_t PageLayout::bytes_for_tokens(uint64_t tokens, int levels) const {
  if (tokens == 0) return 0;
  const uint64_t pages = tokens / page_tokens;
  return pages * page_bytes(levels) + (pages > 0 ? slab_bytes[sink_slab()] : 0) + tail_bytes;
}

double PageLayout::bytes_per_token(int levels) const {
  return static_cast<double>(page_bytes(levels)) / page_tokens;
}

// A complete page without its sink.
uint64_t PageLayout::page_bytes(int levels) const {
  uint64_t bytes = kPageHeaderBytes;
  for (int level = 0; level < (levels == 0 ? num_levels : levels); ++level) bytes += slab_bytes[level];
  return bytes;
}

uint64_t PageLayout::bf16_bytes_for_tokens(uint64_t tokens) const {
  return tokens * num_banks * 2 * num_kv_heads * head_dim * 2;
}

}  // namespace lowkey::kernels
