// The plain structures of the page format, the same on host and device (page_layout.h tells what they mean together).
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

}  // namespace lowkey::kernels
