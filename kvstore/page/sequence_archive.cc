#include "kvstore/page/sequence_archive.h"

#include <numeric>

namespace lowkey::kvstore {

SequenceArchive::~SequenceArchive() {
  for (size_t bank = 0; bank < slabs_.size(); ++bank) shrink_bank(static_cast<int>(bank), 0);
}

bool SequenceArchive::grow(std::span<const int> pages) {
  LOWKEY_CHECK(pages.size() == slabs_.size(), "{} banks of {}", pages.size(), slabs_.size());
  const std::vector<int> before = pages_;
  for (size_t bank = 0; bank < slabs_.size(); ++bank) {
    if (grow_bank(static_cast<int>(bank), pages[bank])) continue;
    for (size_t back = 0; back <= bank; ++back) shrink_bank(static_cast<int>(back), before[back]);
    return false;
  }
  return true;
}

bool SequenceArchive::grow_bank(int bank, int pages) {
  for (int& held = pages_[bank]; held < pages; ++held) {
    const int slabs = memory_->archive_slabs_of_page(bank, held);
    for (int slab = 0; slab < slabs; ++slab) {
      const std::optional<SlabId> id = memory_->archive_slabs(bank, slab).allocate();
      if (!id) {
        while (slab-- > 0) {
          memory_->archive_slabs(bank, slab).free(slabs_[bank].back());
          slabs_[bank].pop_back();
        }
        return false;
      }
      slabs_[bank].push_back(*id);
    }
  }
  return true;
}

void SequenceArchive::shrink_bank(int bank, int pages) {
  for (int& held = pages_[bank]; held > pages; --held) {
    for (int slab = memory_->archive_slabs_of_page(bank, held - 1); slab-- > 0;) {
      memory_->archive_slabs(bank, slab).free(slabs_[bank].back());
      slabs_[bank].pop_back();
    }
  }
}

uint64_t SequenceArchive::total_pages() const {
  return std::accumulate(pages_.begin(), pages_.end(), uint64_t{0});
}

std::span<const SlabId> SequenceArchive::slabs_from(int bank, int first) const {
  const kernels::PageLayout& layout = memory_->archive()->layouts[bank];
  const size_t sink = first > 0 ? layout.num_slabs() - layout.num_levels : 0;
  return std::span(slabs_[bank]).subspan(static_cast<size_t>(first) * layout.num_levels + sink);
}

std::optional<ScoreSpace> ScoreSpace::allocate(PageMemory& memory, uint64_t tokens) {
  const std::optional<uint64_t> offset = memory.scores().allocate(memory.score_bytes(tokens));
  if (!offset) return std::nullopt;
  ScoreSpace space;
  space.memory_ = &memory;
  space.offset_ = *offset;
  return space;
}

}  // namespace lowkey::kvstore
