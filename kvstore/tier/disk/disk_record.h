// The disk tier's files. A folder `store-K` per store holds segments, each a file that only grows, up to a
// fixed size, and is then only read, until it is deleted as a whole.
//
//   segment-0000000000000007   | segment block | record | record | ... |
//   record                     | record block | slab 0 | slab 1 | ... |     every part padded to
//   kDiskAlignment
//
// A block is kDiskAlignment bytes, little-endian, with a checksum of itself; slabs have theirs in the page
// header inside the record block. So a record that was torn, or damaged anywhere, is told from a good one by
// its own bytes, whatever was being written when the process or the machine stopped.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kernels/page/page_header.h"

namespace lowkey::kvstore {

inline constexpr uint64_t kDiskAlignment = 512;
inline constexpr uint32_t kDiskFormatVersion = 2;

constexpr uint64_t disk_rounded(uint64_t bytes) {
  return (bytes + kDiskAlignment - 1) / kDiskAlignment * kDiskAlignment;
}

using SlabBytes = std::array<uint32_t, kernels::kMaxSlabs>;  // levels, then the sink; 0: none

constexpr uint32_t mask_of(const SlabBytes& slab_bytes) {  // bit i: slab i
  uint32_t mask = 0;
  for (size_t i = 0; i < slab_bytes.size(); ++i) mask |= uint32_t{slab_bytes[i] > 0} << i;
  return mask;
}

using DiskBlock = std::array<std::byte, kDiskAlignment>;

struct DiskRecord {
  uint64_t segment = 0;  // number of the file: a record copied elsewhere is none
  SlabBytes slab_bytes{};
  kernels::PageHeader header;

  uint64_t bytes() const;             // with its block, padded
  uint64_t slab_offset(int i) const;  // from the start of the record
};

DiskBlock pack_segment(uint64_t number);
// Whether it starts a segment of this number that this program can read: same formats of disk and of pages.
bool is_segment(std::span<const std::byte, kDiskAlignment> block, uint64_t number);

DiskBlock pack_record(const DiskRecord& record);
std::optional<DiskRecord> unpack_record(std::span<const std::byte, kDiskAlignment> block, uint64_t segment);

}  // namespace lowkey::kvstore
