// Codes of a stored vector to and from its planes, element by element: the plain version of the inner orders
// of page_layout.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

// The planes of up to 16 consecutive features, levels ascending and high bits first.
struct PlaneGroup {
  int feature = 0;   // first
  int features = 0;  // how many
  int bits = 0;      // of all planes
  std::span<const Plane> planes;
  // Of the planes of the first `levels` levels.
  int bits_of(int levels) const;
};

// All groups of the vector, those without bits too.
std::vector<PlaneGroup> groups_of(const PageLayout& layout, const VectorLayout& vector);
// The same in place of what `groups` held.
void find_groups(const PageLayout& layout, const VectorLayout& vector, std::vector<PlaneGroup>& groups);

// Writes all bytes of the group's planes. `codes`: [page_tokens][dim] of the whole vector, `group.bits` bits
// each. `slabs`: of the page.
void write_codes(const PageLayout& layout, const VectorLayout& vector, const PlaneGroup& group,
                 const uint32_t* codes, std::byte* const* slabs);

// The other way, from the first `levels` levels: group.bits_of(levels) bits each.
void read_codes(const PageLayout& layout, const VectorLayout& vector, const PlaneGroup& group,
                std::byte* const* slabs, int levels, uint32_t* codes);

}  // namespace lowkey::kernels
