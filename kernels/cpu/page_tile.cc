#include "kernels/cpu/page_tile.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd_ops.h"
#include "kernels/cpu/tile_group.h"
#include "kernels/page/dtype.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/page_tile.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowkey::kernels::simd::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using DU = hn::ScalableTag<uint32_t>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;

inline constexpr int kLanes = hn::MaxLanes(DF());

// Codes out of one plane of kBits: a word is read once for all its elements.
template <int kBits>
struct OnePlane {
  template <class Emit>
  static HWY_INLINE void keys(const GroupPlanes& g, int tokens, const Emit& emit) {
    constexpr int n = 32 / kBits;
    for (int first = 0; first < g.features; first += n) {
      const uint32_t* words = g.words[0] + static_cast<size_t>(first / n) * tokens;
      for (int t = 0; t < tokens; t += kLanes) {
        const VU word = hn::LoadU(DU(), words + t);
#pragma GCC unroll 16
        for (int j = 0; j < n; ++j) {
          if (first + j < g.features) emit(first + j, t, element(word, j));
        }
      }
    }
  }
  template <class Emit>
  static HWY_INLINE void values(const GroupPlanes& g, int tokens, const Emit& emit) {
    constexpr int n = 32 / kBits;
    for (int first = 0; first < tokens; first += n) {
      const uint32_t* words = g.words[0] + static_cast<size_t>(first / n) * g.features;
      for (int f = 0; f < g.features; f += kLanes) {
        const VU word = load_first(DU(), words + f, g.features - f);
#pragma GCC unroll 16
        for (int j = 0; j < n; ++j) emit(f, first + j, element(word, j));
      }
    }
  }
  static HWY_INLINE VU element(VU word, int j) {
    if constexpr (kBits == 32) return word;
    if constexpr (kBits == 16)  // bf16: to where f32 has these bits
      return j == 0 ? hn::ShiftLeft<16>(word) : hn::And(word, hn::Set(DU(), 0xffff0000u));
    return hn::And(hn::ShiftRightSame(word, j * kBits), hn::Set(DU(), (uint32_t{1} << (kBits & 31)) - 1));
  }
};

// Codes out of several planes.
struct SeveralPlanes {
  template <class Load>
  static HWY_INLINE VU element(const GroupPlanes& g, int packed, const Load& load) {
    VU code = hn::Zero(DU());
    for (int p = 0; p < g.count; ++p) {
      const int bits = g.widths[p], n = 32 / bits;
      const VU part = hn::And(hn::ShiftRightSame(load(g.words[p], packed / n), packed % n * bits),
                              hn::Set(DU(), (1u << bits) - 1));
      code = hn::Or(hn::ShiftLeftSame(code, bits), part);
    }
    return code;
  }
  template <class Emit>
  static HWY_INLINE void keys(const GroupPlanes& g, int tokens, const Emit& emit) {
    for (int f = 0; f < g.features; ++f) {
      for (int t = 0; t < tokens; t += kLanes) {
        emit(f, t, element(g, f, [&](const uint32_t* words, int row) {
               return hn::LoadU(DU(), words + static_cast<size_t>(row) * tokens + t);
             }));
      }
    }
  }
  template <class Emit>
  static HWY_INLINE void values(const GroupPlanes& g, int tokens, const Emit& emit) {
    for (int t = 0; t < tokens; ++t) {
      for (int f = 0; f < g.features; f += kLanes) {
        emit(f, t, element(g, t, [&](const uint32_t* words, int row) {
               return load_first(DU(), words + static_cast<size_t>(row) * g.features + f, g.features - f);
             }));
      }
    }
  }
};

// value(feature of the group, token, code) -> tile, for all elements. Keys: lanes are tokens; values:
// features.
template <class Reader, class Value>
HWY_INLINE void fill(Side side, const GroupTask& task, const Value& value) {
  const auto place = [&](int f, int t) {
    return side == Side::kKey ? task.tile + static_cast<size_t>(f) * task.stride + t
                              : task.tile + static_cast<size_t>(t) * task.stride + f;
  };
  const auto emit = [&](int f, int t, VU code) { hn::StoreU(value(f, t, code), DF(), place(f, t)); };
  if (side == Side::kKey) {
    Reader::keys(task.planes, task.tokens, emit);
  } else {
    Reader::values(task.planes, task.tokens, emit);
  }
}

// The same with the reader that suits the planes.
template <class Value>
void fill_codes(Side side, const GroupTask& task, const Value& value) {
  if (task.planes.count == 1) {
    switch (task.planes.bits) {
      case 2:
        return fill<OnePlane<2>>(side, task, value);
      case 4:
        return fill<OnePlane<4>>(side, task, value);
      case 8:
        return fill<OnePlane<8>>(side, task, value);
      default:
        break;
    }
  }
  fill<SeveralPlanes>(side, task, value);
}

void fill_full(Side side, const GroupTask& task) {
  const auto value = [](int, int, VU bits) { return hn::BitCast(DF(), bits); };
  if (task.planes.bits == 32) return fill<OnePlane<32>>(side, task, value);
  fill<OnePlane<16>>(side, task, value);
}

// table[index]; a table of 16 is one register on AVX-512.
HWY_INLINE VF look_up(const float* table, VU index) {
  if constexpr (kLanes == 16) {
    return hn::TableLookupLanes(hn::Load(DF(), table), hn::IndicesFromVec(DF(), hn::BitCast(DI(), index)));
  } else {
    return hn::GatherIndex(DF(), table, hn::BitCast(DI(), index));
  }
}

template <class CodeValue>
HWY_INLINE void fill_scaled(Side side, const GroupTask& task, const float* scalars, const CodeValue& value) {
  if (side == Side::kKey) {
    fill_codes(side, task,
               [&](int, int t, VU code) { return hn::Mul(value(code), hn::LoadU(DF(), scalars + t)); });
  } else {
    fill_codes(side, task,
               [&](int, int t, VU code) { return hn::Mul(value(code), hn::Set(DF(), scalars[t])); });
  }
}

void fill_embedded(Side side, const GroupTask& task, const float* scalars) {
  const CodeValues& values = code_values(task.planes.bits);
  if (values.fine == 0)
    return fill_scaled(side, task, scalars, [&](VU code) { return look_up(values.table, code); });
  const int fine = values.fine;
  fill_scaled(side, task, scalars, [&, fine](VU code) {
    const VU hi = hn::ShiftRightSame(code, fine), lo = hn::And(code, hn::Set(DU(), (1u << fine) - 1));
    return hn::MulAdd(look_up(values.step, hi), hn::ConvertTo(DF(), hn::BitCast(DI(), lo)),
                      look_up(values.table, hi));
  });
}

// `scales` with `feature` counted from the group's first one.
void fill_affine(Side side, const GroupTask& task, const AffineScales& scales) {
  const auto convert = [](VU code) { return hn::ConvertTo(DF(), hn::BitCast(DI(), code)); };
  const int first = task.planes.feature;
  if (scales.channel != (side == Side::kKey)) {  // the pairs of a vector's lanes lie side by side
    return fill_codes(side, task, [&](int f, int t, VU code) {
      const size_t at = scales.channel ? scales.blocks[t] + first + f : scales.blocks[first + f] + t;
      return hn::MulAdd(hn::LoadU(DF(), scales.steps + at), convert(code), hn::LoadU(DF(), scales.lows + at));
    });
  }
  if (scales.whole_vectors) {  // all lanes have one pair
    return fill_codes(side, task, [&](int f, int t, VU code) {
      const size_t at = scales.channel ? scales.blocks[t] + first + f : scales.blocks[first + f] + t;
      return hn::MulAdd(hn::Set(DF(), scales.steps[at]), convert(code), hn::Set(DF(), scales.lows[at]));
    });
  }
  fill_codes(side, task, [&](int f, int t, VU code) {
    const auto at = scales.channel ? hn::Add(hn::LoadU(DI(), scales.blocks + t), hn::Set(DI(), first + f))
                                   : hn::Add(hn::LoadU(DI(), scales.blocks + first + f), hn::Set(DI(), t));
    return hn::MulAdd(hn::GatherIndex(DF(), scales.steps, at), convert(code),
                      hn::GatherIndex(DF(), scales.lows, at));
  });
}

void clear_group(Side side, const GroupTask& task) {
  const int rows = side == Side::kKey ? task.planes.features : task.tokens;
  const int columns = side == Side::kKey ? task.tokens : task.planes.features;
  for (int row = 0; row < rows; ++row)
    std::fill_n(task.tile + static_cast<size_t>(row) * task.stride, columns, 0.0f);
}

void decode_groups(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels,
                   const float* scalars, const AffineScales& scales, float* tile) {
  const bool key = vector.side == Side::kKey;
  const Plane* plane = layout.planes.data() + vector.first_plane;
  const Plane* end = plane + vector.num_planes;
  GroupTask task;
  task.tokens = layout.page_tokens;
  task.stride = tile_stride(key ? layout.page_tokens : vector.dim);
  for (int feature = 0; feature < vector.dim; feature += kGroupFeatures) {
    GroupPlanes& group = task.planes;
    group.feature = feature;
    group.features = std::min(kGroupFeatures, vector.dim - feature);
    group.count = group.bits = 0;
    for (; plane < end && plane->feature == feature; ++plane) {
      if (plane->level >= levels) continue;
      group.words[group.count] = reinterpret_cast<const uint32_t*>(page.slabs[plane->level] + plane->offset);
      group.widths[group.count++] = plane->bits;
      group.bits += plane->bits;
    }
    task.tile = tile + static_cast<size_t>(feature) * (key ? task.stride : 1);
    if (group.count == 0) {
      clear_group(vector.side, task);
    } else if (vector.quantizer == Quantizer::kFull) {
      fill_full(vector.side, task);
    } else if (vector.quantizer == Quantizer::kAffine) {
      fill_affine(vector.side, task, scales);
    } else {
      fill_embedded(vector.side, task, scalars);
    }
  }
}

// (minimum, step) pairs of f16 -> two arrays of f32.
void convert_pairs(const uint32_t* pairs, size_t count, float* lows, float* steps) {
  const hn::Rebind<uint16_t, DF> du16;
  const hn::Rebind<hwy::float16_t, DF> df16;
  const auto to_f32 = [&](VU bits) {
    return hn::PromoteTo(DF(), hn::BitCast(df16, hn::DemoteTo(du16, hn::BitCast(DI(), bits))));
  };
  for (size_t i = 0; i < count; i += kLanes) {
    const VU pair = load_first(DU(), pairs + i, count - i);
    hn::StoreU(to_f32(hn::And(pair, hn::Set(DU(), 0xffffu))), DF(), lows + i);
    hn::StoreU(to_f32(hn::ShiftRight<16>(pair)), DF(), steps + i);
  }
}

}  // namespace lowkey::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowkey::kernels::simd {

HWY_EXPORT(decode_groups);
HWY_EXPORT(convert_pairs);

namespace {

// A page's last words may be of more tokens than it has: of so many at most, at least a vector.
constexpr int kWordTokens = 32;
static_assert(kWordTokens >= kTileLanes);

void load_scalars(const PageLayout& layout, const VectorLayout& vector, PageView page, TileScratch& scratch) {
  grow(scratch.scalars, layout.page_tokens + kWordTokens);
  if (vector.num_scalars > 0) {
    bf16_to_f32_row(reinterpret_cast<const uint16_t*>(page.slabs[0] + vector.scalars_offset),
                    scratch.scalars.data(), layout.page_tokens);
  } else {
    std::fill_n(scratch.scalars.data(), layout.page_tokens, 1.0f);
  }
}

AffineScales load_scales(const PageLayout& layout, const VectorLayout& vector, PageView page,
                         TileScratch& scratch) {
  const bool channel = vector.axis == ScaleAxis::kChannel;
  const int extent = channel ? layout.page_tokens : vector.dim;
  const int pitch = channel ? vector.dim : layout.page_tokens;  // pairs of a block
  const size_t count = static_cast<size_t>(ceil_div(extent, vector.scale_span)) * pitch;
  // Whole vectors are read and written behind the last pair, and blocks behind the last feature.
  grow(scratch.lows, count + kWordTokens);
  grow(scratch.steps, count + kWordTokens);
  grow(scratch.blocks, extent + kWordTokens);
  for (int i = 0; i < extent; ++i) scratch.blocks[i] = i / vector.scale_span * pitch;
  for (int i = extent; i < extent + kWordTokens; ++i) scratch.blocks[i] = 0;
  HWY_DYNAMIC_DISPATCH(convert_pairs)
  (reinterpret_cast<const uint32_t*>(page.slabs[0] + vector.scales_offset), count, scratch.lows.data(),
   scratch.steps.data());
  return {scratch.lows.data(), scratch.steps.data(), scratch.blocks.data(), channel,
          vector.scale_span % kTileLanes == 0};
}

const float* row_as_f32(const std::byte* rows, DType dtype, int token, int dim, float* scratch) {
  const size_t offset = static_cast<size_t>(token) * dim;
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(rows) + offset;
  bf16_to_f32_row(reinterpret_cast<const uint16_t*>(rows) + offset, scratch, dim);
  return scratch;
}

}  // namespace

void decode_tile(const PageLayout& layout, const VectorLayout& vector, PageView page, int levels, float* tile,
                 TileScratch& scratch) {
  AffineScales scales{};
  if (vector.quantizer == Quantizer::kEmbedded) load_scalars(layout, vector, page, scratch);
  if (vector.quantizer == Quantizer::kAffine) scales = load_scales(layout, vector, page, scratch);
  HWY_DYNAMIC_DISPATCH(decode_groups)
  (layout, vector, page, levels, scratch.scalars.data(), scales, tile);
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
