// PageLayout: what one page of the cache is, byte by byte. Resolved once, when a model is loaded, from
// (recipe, model, rank slice); plain data, the same on host and device; nothing in a page is parsed at run
// time.
//
// A page holds `page_tokens` consecutive tokens of all banks of this rank. Its bytes live in slabs:
// slab 0 .. num_levels-1 hold one level each (level 0 first: norms and the most important planes); page 0 of
// a sequence has one more, the sink slab, with the first `sink_tokens` tokens exact. Every prefix of the
// levels is a valid, coarser cache.
//
// Inside a level slab: bank, then K of all heads, then V of all heads (heads adjacent). For one stored
// vector: its row scalars and dynamic scales (level 0 only), then its planes, group by group. A group is up
// to 16 consecutive features of the stored vector.
//   K plane  [feature / n][token][n]     V plane  [token / n][feature][n]
// with n elements to 32 bits (8-bit codes: 4, 4-bit: 8, 2-bit: 16, bf16/f16: 2, f32: 1): one SIMD register
// then holds whole tokens (K) or whole features (V) and needs no horizontal sums. A width that does not
// divide 32 is stored as planes of 4, 2 and 1 bits, the high bits first (3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 =
// 4 + 2 + 1); only the reference path reads those and width 1.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/hash128.h"
#include "base/result.h"
#include "kernels/page/page_format.h"

namespace lowkey::kernels {

// What a recipe asks of one stored vector (its resolved `heads`, `features` and `bits` dials).
struct VectorSpec {
  Quantizer quantizer = Quantizer::kFull;
  // Per group and level: the bits that this level adds. Empty: all groups full (kFull), or nothing is stored
  // (the others). A kFull group has its bits as kFullBits in one level, or none at all. The vector's dim ends
  // with the last group given.
  std::vector<std::array<uint8_t, kMaxLevels>> bits;
  // Embedded: one norm per row, of all features in `bits`, those without bits included; else the static
  // scales say all.
  bool norm = true;
  float norm_edge = 4.5f;             // embedded: what is larger in units of scale and norm is clipped
  ScaleAxis axis = ScaleAxis::kNone;  // affine
  int scale_span = 0;                 // affine; features that share a pair have the same width
  bool log_mass = false;              // reserved row scalars (VectorLayout)
  bool position = false;
  // The basis (VectorLayout); empty: identity, zero, ones.
  std::vector<float> encode, decode, mean, scale;
};
inline constexpr uint8_t kFullBits = 255;

// What a recipe asks of the page (its resolved `bits`, `hot` and `stream` dials).
struct PageSpec {
  std::string recipe = "exact";
  int page_class = 0;  // reserved: the token class whose pages these are; each class has its own layout
  int page_tokens = 32;
  int sink_tokens = 0;
  int num_levels = 1;
  int join = 1;  // KV heads per stored vector; divides the local heads
  // One for all vectors of a side, or one each: [bank][side][vector].
  VectorSpec key, value;
  std::vector<VectorSpec> vectors;  // empty: key and value serve all

  // Every group of every vector in `bits` embedded bits, identity basis, no calibration: q8 with 8.
  static PageSpec embedded(std::string recipe, int bits, int sink_tokens);
};

// Of one model on one rank.
struct CacheShape {
  int num_banks = 0;     // layers that own a K/V stream
  int num_kv_heads = 0;  // local to the rank
  int head_dim = 0;
  DType dtype = DType::kBf16;  // the engine's
};

struct PageLayout {
  // Of what make() built, in this process: copies have the same planes and numbers. 0: made by hand.
  uint64_t id = 0;
  uint32_t version = kPageFormatVersion;
  int page_class = 0;
  int page_tokens = 0;
  int sink_tokens = 0;
  int num_levels = 0;
  int num_banks = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int join = 1;
  DType dtype = DType::kBf16;
  std::string recipe;
  std::array<uint32_t, kMaxSlabs>
      slab_bytes{};                   // [num_levels] levels, then the sink (0: none); multiples of 64
  uint32_t tail_bytes = 0;            // exact rows of one incomplete page, all heads; multiple of 64
  std::vector<VectorLayout> vectors;  // [bank][side][vector]
  std::vector<RowsLayout> rows;       // [bank][side][head]
  std::vector<Plane> planes;
  std::vector<float> numbers;  // bases, means and scales of all vectors

  static Result<PageLayout> make(const PageSpec& spec, const CacheShape& shape);

  int vectors_per_side() const { return num_kv_heads / join; }
  // The stored vector that holds this local KV head.
  const VectorLayout& vector(int bank, Side side, int head) const {
    return vectors[(static_cast<size_t>(bank) * 2 + (side == Side::kValue)) * vectors_per_side() +
                   head / join];
  }
  const RowsLayout& rows_of(int bank, Side side, int head) const {
    return rows[(static_cast<size_t>(bank) * 2 + (side == Side::kValue)) * num_kv_heads + head];
  }
  const float* numbers_at(int32_t index) const {
    return index == kNoNumbers ? nullptr : numbers.data() + index;
  }
  int num_slabs() const {
    return num_levels + (sink_tokens > 0);
  }  // slabs of page 0; other pages: num_levels
  int sink_slab() const { return num_levels; }
  // Ranks of a replica share slab ids, so slabs of one level are equally long on all of them: the longest.
  void pad_slabs(const std::array<uint32_t, kMaxSlabs>& longest);
  // Every field above that decides bytes or values; two ranks with equal fingerprints read each other's
  // pages.
  Hash128 fingerprint() const;

  // THE byte forecast: all bytes of one sequence of n tokens on this rank with `levels` levels of every page
  // present (0: all): slabs (planes, scales, row scalars, sink), page headers, and the incomplete page's tail
  // buffer. Scheduler, metrics and tools use it.
  uint64_t bytes_for_tokens(uint64_t tokens, int levels = 0) const;
  // Marginal bytes per token of the complete pages (headers included), e.g. for "bytes per token" lines.
  double bytes_per_token(int levels = 0) const;
  // The same tokens as plain bf16 K and V: the yardstick of every compression ratio.
  uint64_t bf16_bytes_for_tokens(uint64_t tokens) const;

 private:
  uint64_t page_bytes(int levels) const;
};

// Bytes of one plane; the last word along the packed extent may be part-filled.
uint64_t plane_bytes(Side side, int features, int page_tokens, int bits);

inline constexpr uint32_t kPageHeaderBytes = 128;

}  // namespace lowkey::kernels
