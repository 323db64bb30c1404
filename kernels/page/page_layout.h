// PageLayout: what one page of the cache is, byte by byte. Resolved once, when a model is loaded, from
// (recipe, model, rank slice); plain data, the same on host and device; nothing in a page is parsed at run time.
//
// A page holds `page_tokens` consecutive tokens of all banks of this rank. Its bytes live in slabs:
// slab 0 .. num_levels-1 hold one level each (level 0 first: norms and the most important planes); page 0 of a
// sequence has one more, the sink slab, with the first `sink_tokens` tokens exact. Every prefix of the levels is
// a valid, coarser cache.
//
// Inside a level slab: bank, then K of all heads, then V of all heads (heads adjacent). For one stored vector:
// its row scalars (level 0 only), then its planes, group by group. A group is up to 16 consecutive features.
//   K plane  [feature / n][token][n]     V plane  [token / n][feature][n]
// with n elements to 32 bits (8-bit codes: 4, bf16/f16: 2, f32: 1): one SIMD register then holds whole tokens (K)
// or whole features (V) and needs no horizontal sums.
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

// What a recipe asks of the page (its resolved `bits`, `hot` and `stream` dials).
struct PageSpec {
  std::string recipe = "exact";
  int page_tokens = 32;
  int sink_tokens = 0;
  Quantizer quantizer = Quantizer::kFull;
  int bits = 0;  // of every group when embedded: 8
};

// Of one model on one rank.
struct CacheShape {
  int num_banks = 0;     // layers that own a K/V stream
  int num_kv_heads = 0;  // local to the rank
  int head_dim = 0;
  DType dtype = DType::kBf16;  // the engine's
};

struct PageLayout {
  uint32_t version = kPageFormatVersion;
  int page_tokens = 0;
  int sink_tokens = 0;
  int num_levels = 0;
  int num_banks = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  DType dtype = DType::kBf16;
  Quantizer quantizer = Quantizer::kFull;
  std::string recipe;
  std::array<uint32_t, kMaxSlabs> slab_bytes{};  // [num_levels] levels, then the sink (0: none); multiples of 64
  uint32_t tail_bytes = 0;  // exact rows of one incomplete page, all vectors; multiple of 64
  std::vector<VectorLayout> vectors;  // [bank][side][head]
  std::vector<Plane> planes;

  static Result<PageLayout> make(const PageSpec& spec, const CacheShape& shape);

  const VectorLayout& vector(int bank, Side side, int head) const {
    return vectors[(static_cast<size_t>(bank) * 2 + (side == Side::kValue)) * num_kv_heads + head];
  }
  int num_slabs() const { return num_levels + (sink_tokens > 0); }  // slabs of page 0; other pages: num_levels
  int sink_slab() const { return num_levels; }
  // Every field above that decides bytes or values; two ranks with equal fingerprints read each other's pages.
  Hash128 fingerprint() const;

  // THE byte forecast: all bytes of one sequence of n tokens on this rank with all levels present: slabs (planes,
  // row scalars, sink), page headers, and the incomplete page's tail buffer. Scheduler, metrics and tools use it.
  uint64_t bytes_for_tokens(uint64_t tokens) const;
  // Marginal bytes per token of the complete pages (headers included), e.g. for "bytes per token" lines.
  double bytes_per_token() const;
  // The same tokens as plain bf16 K and V: the yardstick of every compression ratio.
  uint64_t bf16_bytes_for_tokens(uint64_t tokens) const;
};

inline constexpr uint32_t kPageHeaderBytes = 128;

}  // namespace lowkey::kernels
