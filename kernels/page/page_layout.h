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

namespace lowkey::kernels {

enum class DType : uint8_t { kF32, kBf16, kF16 };
size_t dtype_bytes(DType dtype);
const char* to_string(DType dtype);

enum class Quantizer : uint8_t {
  kFull,      // the engine's dtype as it is
  kEmbedded,  // non-uniform nested cells: 2-bit code = top of the 4-bit code = top of the 8-bit code
};

enum class Side : uint8_t { kKey, kValue };

inline constexpr uint32_t kPageFormatVersion = 1;
inline constexpr int kMaxLevels = 3;
inline constexpr int kMaxSlabs = kMaxLevels + 1;  // and the sink
inline constexpr int kGroupFeatures = 16;
inline constexpr int kMaxGroups = 64;  // head_dim 256 with 4 joined heads

// All bits that one level adds to one group of one stored vector.
struct Plane {
  uint32_t offset = 0;  // bytes from the start of the level's slab
  uint32_t bytes = 0;
  uint16_t feature = 0;      // first feature of the group
  uint16_t features = 0;     // at most kGroupFeatures
  uint8_t bits = 0;          // per element; 16 or 32 when full
  uint8_t level = 0;
};

// One stored vector per token: K or V of one local head.
struct VectorLayout {
  Side side = Side::kKey;
  Quantizer quantizer = Quantizer::kFull;
  uint16_t bank = 0;
  uint16_t head = 0;        // local KV head
  uint16_t dim = 0;         // features
  uint16_t num_planes = 0;
  uint32_t first_plane = 0;     // index into PageLayout::planes
  uint32_t scalars_offset = 0;  // row scalars in slab 0: one bf16 norm per token; unused when num_scalars = 0
  uint8_t num_scalars = 0;      // row scalars per token
  uint32_t tail_offset = 0;     // this vector's rows in a tail buffer: [page_tokens][dim] of `dtype`
  uint32_t sink_offset = 0;     // this vector's rows in the sink slab: [sink_tokens][dim] of `dtype`
};

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
