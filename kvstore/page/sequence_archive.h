// What one sequence holds of archived pages and of room for scores; both return with the object. Leader only:
// the bookkeeping of who uses which slab. Thread rule: the step thread only. The memory outlives it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvstore/page/page_memory.h"

namespace lowkey::kvstore {

class SequenceArchive {
 public:
  SequenceArchive() = default;
  explicit SequenceArchive(PageMemory& memory)
      : memory_(&memory), slabs_(memory.archive()->num_banks()), pages_(slabs_.size()) {}
  SequenceArchive(SequenceArchive&& other) noexcept { swap(other); }
  SequenceArchive& operator=(SequenceArchive other) noexcept {
    swap(other);
    return *this;
  }
  ~SequenceArchive();

  explicit operator bool() const { return memory_ != nullptr; }

  // Allocates until every bank has `pages[bank]` pages (fewer than it has: those stay). False, and nothing
  // changed, when the memory does not hold them.
  bool grow(std::span<const int> pages);

  const std::vector<int>& pages() const { return pages_; }  // [bank]
  uint64_t total_pages() const;
  // Slab ids of one bank from page `first` on, page by page: its levels, then the sink for page 0.
  std::span<const SlabId> slabs_from(int bank, int first) const;

 private:
  void swap(SequenceArchive& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(slabs_, other.slabs_);
    std::swap(pages_, other.pages_);
  }
  bool grow_bank(int bank, int pages);
  void shrink_bank(int bank, int pages);

  PageMemory* memory_ = nullptr;
  std::vector<std::vector<SlabId>> slabs_;  // [bank]
  std::vector<int> pages_;                  // [bank]
};

// Room for the scores of one prompt.
class ScoreSpace {
 public:
  ScoreSpace() = default;
  ScoreSpace(ScoreSpace&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), offset_(other.offset_) {}
  ScoreSpace& operator=(ScoreSpace other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(offset_, other.offset_);
    return *this;
  }
  ~ScoreSpace() {
    if (memory_ != nullptr) memory_->scores().free(offset_);
  }
  // Empty when other prompts have the room. REQUIRES: the memory keeps scores.
  static std::optional<ScoreSpace> allocate(PageMemory& memory, uint64_t tokens);

  explicit operator bool() const { return memory_ != nullptr; }
  uint64_t offset() const { return offset_; }  // a multiple of OffsetAllocator::kAlignment

 private:
  PageMemory* memory_ = nullptr;
  uint64_t offset_ = 0;
};

}  // namespace lowkey::kvstore
