// How the fast kernels read one pair of stored vectors, K and V of one head, at a number of levels: which
// bytes of the page's slabs they stage, where each group of features then lies, and what its codes are.
// Static, made from the layout alone.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/page/page_format.h"

namespace lowkey::kernels {
struct PageLayout;
}

namespace lowkey::kernels::cuda {

inline constexpr int kMaxFastGroups = 8;  // 128 features

enum class CodeForm : uint8_t {
  kNone,     // no bits at these levels
  kCrumbs,   // one plane of 2 bits
  kNibbles,  // one plane of 4
  kBytes,    // one plane of 8
  kFull,     // bf16
};

// A part of a page that lies in one slab.
struct StagedChunk {
  uint32_t offset = 0;  // in the slab
  uint32_t bytes = 0;   // multiple of 16; 0: none
  uint32_t target = 0;  // in the stage
  uint32_t slab = 0;
};

// What all heads of a bank have in common: which kernel there is for them.
enum class FastKind : uint8_t { kNone, kCrumbs, kNibbles, kMixed, kFull };

// Kernels read the tables by loads of 16 bytes.
struct alignas(16) FastSide {
  StagedChunk chunks[kMaxLevels];
  alignas(16) uint32_t groups[kMaxFastGroups] = {};  // in the stage
  CodeForm forms[kMaxFastGroups] = {};               // kNone from num_groups on
  uint32_t norms = 0;                                // in the stage
  uint16_t dim = 0;
  uint8_t num_groups = 0;
  bool has_norm = false;
};

struct alignas(16) FastPlan {
  FastSide key, value;
  uint32_t stage_bytes = 0;   // K's, then V's
  uint32_t copied_bytes = 0;  // of all chunks
  FastKind kind = FastKind::kNone;
};

// None: no fast kernel (another quantizer, several planes in a group, joined heads, ...). Kind kNone: nothing
// to read at these levels, which every kernel can.
std::optional<FastPlan> make_fast_plan(const PageLayout& layout, const VectorLayout& key,
                                       const VectorLayout& value, int levels);

}  // namespace lowkey::kernels::cuda
