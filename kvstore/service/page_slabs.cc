#include "kvstore/service/page_slabs.h"

#include <bit>

namespace lowkey::kvstore {

SlabMask mask_of(const Slabs& slabs) {
  SlabMask mask = 0;
  for (size_t i = 0; i < slabs.size(); ++i) mask |= SlabMask{slabs[i].bytes > 0} << i;
  return mask;
}

bool describes(const kernels::PageHeader& header, SlabMask slabs) {
  const SlabMask levels = header.levels_present, run = slabs & levels;
  if (run == 0 || (levels & (levels + 1)) != 0 || (run & (run + 1)) != 0) return false;
  const SlabMask sink = slabs & ~levels;
  return header.has_sink ? std::has_single_bit(sink) && sink > levels : sink == 0;
}

SlabMask known_slabs(const kernels::PageHeader& header, SlabMask slabs) {
  return slabs | header.levels_present;
}

int levels_of(const kernels::PageHeader& header, SlabMask present) {
  return std::popcount(header.levels_present & present);
}

}  // namespace lowkey::kvstore
