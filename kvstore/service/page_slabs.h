// The slabs of a page in a store's pool, and what a header says of them.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/page/page_header.h"

namespace lowkey::kvstore {

struct Slab {
  uint64_t offset = 0;  // into the pool
  uint32_t bytes = 0;   // as asked for; 0: the slab is not there
};
using Slabs = std::array<Slab, kernels::kMaxSlabs>;  // levels, then the sink
using SlabMask = uint32_t;                           // bit i: slab i

SlabMask mask_of(const Slabs& slabs);

// In a grant: the slab is there already, nothing is to be written.
inline constexpr uint64_t kSlabIsThere = ~uint64_t{0};

// Whether a header describes these slabs: a leading run of its levels, and a sink behind them when it has
// one.
bool describes(const kernels::PageHeader& header, SlabMask slabs);
// The slabs that a header which describes() `slabs` has checksums for.
SlabMask known_slabs(const kernels::PageHeader& header, SlabMask slabs);
// Levels among those slabs.
int levels_of(const kernels::PageHeader& header, SlabMask slabs);

}  // namespace lowkey::kvstore
