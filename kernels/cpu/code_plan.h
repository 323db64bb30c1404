// How the integer kernels (code_attention.h) read one pair of stored vectors, K and V, at a number of levels:
// static, made from the layout alone, so that whether a layout is attended in integers never depends on data,
// batch or machine.
//
// A code of up to 4 bits is *narrow*: its value becomes one byte, 127 / (largest value) = kNarrowUnit to one.
// A code of 8 bits is *wide*: base[hi] + step[hi] lo in 16 bits, kWideUnit to one.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

// What planes a group's bits come from, high bits first.
enum class CodeForm : uint8_t {
  kNibbles,       // 4
  kCrumbs,        // 2
  kCrumbPair,     // 2 + 2
  kBytes,         // 8
  kNibblePair,    // 4 + 4
  kCrumbsNibble,  // 2 + 2 + 4
  kNibbleCrumbs,  // 4 + 2 + 2
};

inline bool is_wide(CodeForm form) {
  return form >= CodeForm::kBytes;
}

inline constexpr float kNarrowUnit = 127 / 2.732589483f;
inline constexpr float kWideUnit = 4096;
// Of a wide value, at the quantizer's outer edge: kEmbeddedEdge * kWideUnit.
inline constexpr int kMaxWideValue = 18432;

// The orders in which forms hand out 16 packed elements (features of K, tokens of V): [quad][4] of narrow
// forms, [pair][2] of wide ones.
using ElementOrder = std::array<uint8_t, 16>;
const ElementOrder& element_order(CodeForm form);

// Adjacent groups of one form whose planes follow each other in their slabs; all but the last of a vector's
// have kGroupFeatures features.
struct CodeGroup {
  struct Source {
    uint32_t offset = 0;  // in the slab
    uint32_t bytes = 0;   // of one of the groups
    uint8_t slab = 0;
  };
  CodeForm form = CodeForm::kNibbles;
  uint8_t num_planes = 0;
  uint16_t feature = 0;
  uint16_t features = 0;    // of all
  uint16_t query_word = 0;  // of a key's group: its first word in a row of CodeQueries
  std::array<Source, kMaxLevels> planes;
};

// One stored vector. Groups without bits are not listed.
struct CodeSide {
  std::vector<CodeGroup> groups;
  int dim = 0;
  bool narrow = false, wide = false;  // which kinds its groups have
  bool has_norm = false;
  uint32_t norms_offset = 0;  // in slab 0
  int query_words = 0;        // 32-bit words of a mapped query: 4 for a narrow group, 8 for a wide one
};

struct CodePlan {
  CodeSide key, value;
  int page_tokens = 0;

  // False: no integer kernel for these vectors (another quantizer, widths other than 0, 2, 4, 8 read, pages of
  // other than multiples of 16 tokens); the plan is then of no use. Keeps its memory.
  bool make(const PageLayout& layout, const VectorLayout& key, const VectorLayout& value, int levels);
};

}  // namespace lowkey::kernels
