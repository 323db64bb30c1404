#include "kvstore/service/page_transcoder.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/page/dtype.h"

namespace lowkey::kvstore {

using kernels::PageLayout;
using kernels::Side;
using kernels::VectorLayout;
namespace simd = kernels::simd;

namespace {

// Every row is stored as it is.
bool is_exact(const PageLayout& layout) {
  return std::ranges::all_of(layout.vectors, [](const VectorLayout& vector) {
    return vector.quantizer == kernels::Quantizer::kFull && vector.encode == kernels::kNoNumbers &&
           vector.mean == kernels::kNoNumbers &&
           vector.num_planes == (vector.input_dim + kernels::kGroupFeatures - 1) / kernels::kGroupFeatures;
  });
}

// What takes a tile's features back to rows: [dim][stride of input_dim] for values, whose tile has tokens in
// front, and [input_dim][dim] for keys, whose tile has features in front. Empty: the features are the row.
std::vector<float> map_of(const PageLayout& layout, const VectorLayout& vector) {
  const float* decode = layout.numbers_at(vector.decode);
  const float* scale = simd::has_static_scale(vector) ? layout.numbers_at(vector.scale) : nullptr;
  if (decode == nullptr && scale == nullptr) return {};
  const int stride = simd::tile_stride(vector.input_dim);
  const bool key = vector.side == Side::kKey;
  std::vector<float> map(key ? size_t{vector.input_dim} * vector.dim : size_t{vector.dim} * stride);
  for (int f = 0; f < vector.dim; ++f) {
    for (int i = 0; i < vector.input_dim; ++i) {
      float weight = decode ? decode[size_t(f) * vector.input_dim + i] : i == f ? 1.0f : 0.0f;
      if (scale) weight *= scale[f];
      map[key ? size_t(i) * vector.dim + f : size_t(f) * stride + i] = weight;
    }
  }
  return map;
}

template <class T>
T* grow(std::vector<T>& memory, size_t size) {
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

}  // namespace

Status PageTranscoder::check(const PageLayout& hot, const PageLayout& spilled) {
  const auto differs = [](const char* what, const auto& expected, const auto& found) {
    return Error{Code::kUsage,
                 fmt::format("stream: spill: recipe: {}: expected {}, found {}", what, expected, found),
                 "recipe"};
  };
  if (spilled.num_banks != hot.num_banks) return differs("banks", hot.num_banks, spilled.num_banks);
  if (spilled.num_kv_heads != hot.num_kv_heads)
    return differs("KV heads", hot.num_kv_heads, spilled.num_kv_heads);
  if (spilled.head_dim != hot.head_dim) return differs("head_dim", hot.head_dim, spilled.head_dim);
  if (spilled.dtype != hot.dtype) return differs("dtype", to_string(hot.dtype), to_string(spilled.dtype));
  if (spilled.page_tokens != hot.page_tokens)
    return differs("page_tokens", hot.page_tokens, spilled.page_tokens);
  if (spilled.sink_tokens != hot.sink_tokens)
    return differs("sink tokens", hot.sink_tokens, spilled.sink_tokens);
  return {};
}

PageTranscoder::Form PageTranscoder::form_of(PageLayout layout) {
  Form form{std::move(layout), {}};
  for (const VectorLayout& vector : form.layout.vectors) form.maps.push_back(map_of(form.layout, vector));
  return form;
}

PageTranscoder::PageTranscoder(PageLayout hot, PageLayout spilled)
    : hot_(form_of(std::move(hot))), spilled_(form_of(std::move(spilled))) {
  const Status fits = check(hot_.layout, spilled_.layout);
  LOWKEY_CHECK(fits.ok(), "{}", fits.error().message);
  lossy_ = !(is_exact(hot_.layout) && is_exact(spilled_.layout));
  unwanted_.resize(*std::ranges::max_element(hot_.layout.slab_bytes));
}

void PageTranscoder::spill(const ConstSlabs& hot, const Slabs& spilled) {
  transcode(hot_, hot, spilled_.layout, spilled);
}

void PageTranscoder::restore(const ConstSlabs& spilled, const Slabs& hot) {
  transcode(spilled_, spilled, hot_.layout, hot);
}

void PageTranscoder::transcode(const Form& from, const ConstSlabs& source, const PageLayout& to,
                               const Slabs& target) {
  std::array<std::byte*, kernels::kMaxSlabs> slabs{};
  for (int level = 0; level < to.num_levels; ++level) {
    slabs[level] = target[level].empty() ? unwanted_.data() : target[level].data();
    std::memset(slabs[level], 0, to.slab_bytes[level]);
  }
  const std::span<const std::byte> sink = source[from.layout.sink_slab()];
  if (const auto to_sink = target[to.sink_slab()]; !to_sink.empty() && !sink.empty())
    std::memcpy(to_sink.data(), sink.data(), to_sink.size());
  const size_t row_bytes = to.head_dim * dtype_bytes(to.dtype), head_bytes = to.page_tokens * row_bytes;
  grow(rows_, to.num_kv_heads * head_bytes);
  std::vector<const std::byte*> heads;
  for (size_t side = 0; side < 2 * static_cast<size_t>(to.num_banks); ++side) {  // bank by bank, K and V
    const size_t read = from.layout.vectors_per_side(), written = to.vectors_per_side();
    for (size_t v = side * read; v < (side + 1) * read; ++v)
      read_rows(from, v, source, rows_.data() + from.layout.vectors[v].head * head_bytes);
    for (size_t v = side * written; v < (side + 1) * written; ++v) {
      const VectorLayout& vector = to.vectors[v];
      heads.clear();
      for (int h = 0; h < vector.num_heads; ++h)
        heads.push_back(rows_.data() + (vector.head + h) * head_bytes);
      encoder_.encode(to, vector, heads, {slabs.data()});
    }
  }
}

void PageTranscoder::read_rows(const Form& from, size_t index, const ConstSlabs& source, std::byte* rows) {
  const PageLayout& layout = from.layout;
  const VectorLayout& vector = layout.vectors[index];
  const int tokens = layout.page_tokens, inputs = vector.input_dim;
  const bool key = vector.side == Side::kKey;
  std::array<std::byte*, kernels::kMaxSlabs> slabs{};
  for (int level = 0; level < layout.num_levels; ++level)
    slabs[level] = const_cast<std::byte*>(source[level].data());  // decoding only reads
  float* tile = grow(tile_, simd::tile_floats(vector.side, tokens, vector.dim));
  if (vector.dim > 0) simd::decode_tile(layout, vector, {slabs.data()}, layout.num_levels, tile, scratch_);
  // Features to inputs; the order of the two is the tile's.
  const int token_stride = simd::tile_stride(tokens);
  int stride = key ? token_stride : simd::tile_stride(vector.dim);
  int known = vector.dim;  // inputs that the features say something of
  if (const std::vector<float>& map = from.maps[index]; !map.empty() && vector.dim > 0) {
    const int input_stride = simd::tile_stride(inputs);
    float* mapped = grow(mapped_, key ? size_t(inputs) * token_stride : size_t(tokens) * input_stride);
    if (key) {
      simd::multiply_tile({map.data(), vector.dim, tile, token_stride, mapped, token_stride, inputs,
                           vector.dim, token_stride, /*accumulate=*/false});
    } else {
      simd::multiply_tile({tile, stride, map.data(), input_stride, mapped, input_stride, tokens, vector.dim,
                           input_stride, /*accumulate=*/false});
      stride = input_stride;
    }
    tile = mapped;
    known = inputs;
  }
  const float* mean = layout.numbers_at(vector.mean);
  for (int head = 0; head < vector.num_heads; ++head) {
    for (int token = 0; token < tokens; ++token) {
      for (int i = 0; i < layout.head_dim; ++i, rows += dtype_bytes(layout.dtype)) {
        const int input = head * layout.head_dim + i;
        float x = mean ? mean[input] : 0.0f;
        if (input < known)
          x += key ? tile[size_t(input) * stride + token] : tile[size_t(token) * stride + input];
        kernels::store_element(rows, layout.dtype, 0, x);
      }
    }
  }
}

}  // namespace lowkey::kvstore
