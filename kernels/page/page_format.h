// The plain structures of the page format, the same on host and device (page_layout.h tells what they mean
// together).
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowkey::kernels {

enum class DType : uint8_t { kF32, kBf16, kF16 };
size_t dtype_bytes(DType dtype);
const char* to_string(DType dtype);

enum class Quantizer : uint8_t {
  kFull,      // the engine's dtype as it is
  kEmbedded,  // non-uniform nested cells: 2-bit code = top of the 4-bit code = top of the 8-bit code
  kAffine,    // uniform codes 0 .. 2^bits - 1 between a block's own minimum and maximum (KIVI, MiniKV)
};

// Along what the dynamic scales of affine codes are shared.
enum class ScaleAxis : uint8_t {
  kNone,
  kChannel,  // one pair per feature and block of scale_span tokens
  kToken,    // one pair per token and block of scale_span features
};

enum class Side : uint8_t { kKey, kValue };

inline constexpr uint32_t kPageFormatVersion = 2;
inline constexpr int kMaxLevels = 3;
inline constexpr int kMaxSlabs = kMaxLevels + 1;  // and the sink
inline constexpr int kGroupFeatures = 16;
inline constexpr int kMaxGroups = 64;  // head_dim 256 with 4 joined heads
inline constexpr int32_t kNoNumbers = -1;
inline constexpr uint32_t kNoOffset = ~0u;

// All bits that one level adds to one group of one stored vector.
struct Plane {
  uint32_t offset = 0;  // bytes from the start of the level's slab
  uint32_t bytes = 0;
  uint16_t feature = 0;   // first feature of the group
  uint16_t features = 0;  // at most kGroupFeatures
  uint8_t bits = 0;       // per element; 16 or 32 when full
  uint8_t level = 0;
};

// One stored vector per token: K or V of one local KV head, or of several joined ones.
//
// An exact row x [input_dim] is stored as features y = encode (x - mean) [dim] and read back as
// x' = mean + decode^T y', with y' what the planes say of y. Without `encode` the features are the row
// itself. Embedded codes are of u = y / (scale * norm), with a static scale per feature and one norm per row.
struct VectorLayout {
  Side side = Side::kKey;
  Quantizer quantizer = Quantizer::kFull;
  ScaleAxis axis = ScaleAxis::kNone;
  uint16_t bank = 0;
  uint16_t head = 0;       // first local KV head
  uint16_t num_heads = 1;  // joined: input_dim = num_heads * head_dim
  uint16_t input_dim = 0;  // features of an exact row
  uint16_t dim = 0;        // features stored: input_dim, or fewer where the last groups got no bits; may be 0
  uint16_t num_planes = 0;
  uint32_t first_plane = 0;  // index into PageLayout::planes, group by group, levels ascending inside a group
  uint32_t scalars_offset = 0;  // norms in slab 0: [num_scalars][page_tokens] bf16
  uint8_t num_scalars = 0;      // norms per token: 1 or 0
  // Reserved: what a recipe may know of a row beside its codes; kNoOffset: nothing. In slab 0, written by
  // whoever chooses and merges tokens, not by the codec.
  uint32_t log_masses_offset = kNoOffset;  // [page_tokens] f32, added to the row's score
  uint32_t positions_offset = kNoOffset;   // [page_tokens] u32, where rotation is applied when keys are read
  // Reserved for latents stored once: a value vector without planes of its own, read from those of the key
  // vector of its bank and head (in the order of keys) and mapped back with its own `decode` and `mean`.
  bool from_key = false;
  uint16_t scale_span = 0;  // affine: tokens (kChannel) or features (kToken) that share a pair
  // Affine: pairs (minimum, step) of f16 in slab 0, [ceil(page_tokens / span)][dim] (kChannel) or
  // [ceil(dim / span)][page_tokens] (kToken); the last block may be smaller.
  uint32_t scales_offset = 0;
  float norm_edge = 0;  // embedded: norm = max(rms(y / scale), absmax(y / scale) / norm_edge)
  // Indices into PageLayout::numbers, or kNoNumbers.
  int32_t encode = kNoNumbers;  // [dim][input_dim]; none: identity
  int32_t decode = kNoNumbers;  // [dim][input_dim]; equal to `encode` when the basis is orthonormal
  int32_t mean = kNoNumbers;    // [input_dim]; none: zero
  int32_t scale = kNoNumbers;   // [dim]; none: one
};

// Exact rows of K or V of one local KV head, in buffers of their own: [tokens][head_dim] of the dtype.
struct RowsLayout {
  uint32_t tail_offset = 0;  // page_tokens rows in a tail buffer
  uint32_t sink_offset = 0;  // sink_tokens rows in the sink slab
};

}  // namespace lowkey::kernels
