#include "kvstore/page/offset_allocator.h"

#include "base/check.h"

namespace lowkey::kvstore {

OffsetAllocator::OffsetAllocator(uint64_t capacity) : capacity_(capacity / kAlignment * kAlignment) {
  if (capacity_ > 0) add_hole(0, capacity_);
}

std::optional<uint64_t> OffsetAllocator::allocate(uint64_t bytes, bool at_end) {
  LOWKEY_CHECK(bytes > 0);
  if (bytes > capacity_) return std::nullopt;  // before rounding: the sum must not overflow
  bytes = rounded(bytes);
  const auto hole = holes_by_size_.lower_bound({bytes, 0});
  if (hole == holes_by_size_.end()) return std::nullopt;
  const auto [hole_bytes, hole_offset] = *hole;
  const uint64_t rest = hole_bytes - bytes, offset = at_end ? hole_offset + rest : hole_offset;
  remove_hole(hole_offset, hole_bytes);
  if (rest > 0) add_hole(at_end ? hole_offset : offset + bytes, rest);
  taken_.emplace(offset, bytes);
  used_ += bytes;
  return offset;
}

void OffsetAllocator::free(uint64_t offset) {
  const auto taken = taken_.find(offset);
  LOWKEY_CHECK(taken != taken_.end(), "offset {} is not taken", offset);
  uint64_t bytes = taken->second;
  taken_.erase(taken);
  used_ -= bytes;
  auto next = holes_.lower_bound(offset);
  if (next != holes_.end() && next->first == offset + bytes) {
    const auto [next_offset, next_bytes] = *next;
    remove_hole(next_offset, next_bytes);
    bytes += next_bytes;
  }
  auto previous = holes_.lower_bound(offset);
  if (previous != holes_.begin()) {
    const auto [previous_offset, previous_bytes] = *--previous;
    if (previous_offset + previous_bytes == offset) {
      remove_hole(previous_offset, previous_bytes);
      offset = previous_offset;
      bytes += previous_bytes;
    }
  }
  add_hole(offset, bytes);
}

void OffsetAllocator::add_hole(uint64_t offset, uint64_t bytes) {
  holes_.emplace(offset, bytes);
  holes_by_size_.emplace(bytes, offset);
}

void OffsetAllocator::remove_hole(uint64_t offset, uint64_t bytes) {
  holes_.erase(offset);
  holes_by_size_.erase({bytes, offset});
}

}  // namespace lowkey::kvstore
