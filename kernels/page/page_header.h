// The header of a page: what it is, so that a reader can refuse it. 128 bytes, little-endian, beside the
// slabs (in host memory also where the slabs are in device memory), and the first thing on the wire or on
// disk.
#pragma once

#include <array>
#include <cstdint>

#include "base/hash128.h"
#include "kernels/page/page_layout.h"

namespace lowkey::kernels {

struct PageHeader {
  uint32_t version = kPageFormatVersion;
  uint8_t levels_present = 0;       // bit i: level i
  uint8_t read_at_least_level = 0;  // lowest level at which an ancestor was read while this page was computed
  uint8_t has_sink = 0;
  uint8_t page_class = 0;  // of the layout
  Hash128 identity;        // H(token chain, model, layout, rank slice, salt)
  Hash128 model_fingerprint;
  Hash128 layout_fingerprint;
  uint16_t rank = 0;
  uint16_t num_ranks = 0;
  uint32_t first_token = 0;                     // position of the page's first token
  std::array<uint64_t, kMaxSlabs> checksums{};  // slab_checksum() of each slab present
  uint64_t header_checksum = 0;                 // XXH3-64 of the 128 bytes with this field zero
  // Reserved: identity of the tensors that belong to the sequence and that its pages are coded with (its own
  // bases or states); zero: none. Pages that have one are never shared across prompts.
  Hash128 side_tensors;
  uint64_t tokens_hash = 0;  // of the page's own tokens, of another kind than the identity: it confirms that

  uint64_t compute_checksum() const;
};
static_assert(sizeof(PageHeader) == kPageHeaderBytes);

}  // namespace lowkey::kernels
