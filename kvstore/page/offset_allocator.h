// Carves one contiguous range of bytes into slabs of any size: best fit, neighbours merged on free. Offsets
// only, no memory touched. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

namespace lowkey::kvstore {

class OffsetAllocator {
 public:
  // A cache line: page slabs are multiples of it, so rounding costs them nothing.
  static constexpr uint64_t kAlignment = 64;
  static constexpr uint64_t rounded(uint64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  explicit OffsetAllocator(uint64_t capacity);

  // Offset of rounded(bytes) bytes, or nothing when no hole is large enough. Taken from the hole's end when
  // `at_end`: what is given back sooner than the rest, and in the order it came, merges to holes of any size
  // when it lies together. REQUIRES: bytes > 0.
  std::optional<uint64_t> allocate(uint64_t bytes, bool at_end = false);
  void free(uint64_t offset);  // REQUIRES: an offset that allocate() returned and that is not yet free

  uint64_t capacity() const { return capacity_; }
  uint64_t used() const { return used_; }

 private:
  void add_hole(uint64_t offset, uint64_t bytes);
  void remove_hole(uint64_t offset, uint64_t bytes);

  const uint64_t capacity_;
  uint64_t used_ = 0;
  std::map<uint64_t, uint64_t> holes_;                     // offset -> bytes
  std::set<std::pair<uint64_t, uint64_t>> holes_by_size_;  // (bytes, offset): the best fit is the lower bound
  std::unordered_map<uint64_t, uint64_t> taken_;           // offset -> bytes
};

}  // namespace lowkey::kvstore
