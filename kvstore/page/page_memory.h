// The device tier's memory on one rank: an arena, and one slab pool for every size that the layout has.
//
// `budget` covers everything: slabs, sinks, the tails of running sequences, and 128 bytes of header for every
// page that can exist. All ranks of a replica make it from equal numbers, so that slab ids mean the same
// everywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/page/page_layout.h"
#include "kvstore/page/slab_pool.h"

namespace lowkey::kvstore {

// Bytes of the device tier; capacity = used + evictable + free + slack.
struct Ledger {
  uint64_t capacity = 0;   // what the budget gave: superblocks and headers
  uint64_t used = 0;       // pages somebody refers to, tails
  uint64_t evictable = 0;  // published pages nobody refers to
  uint64_t free = 0;       // never allocated, or returned
  uint64_t slack = 0;      // behind the last slab of superblocks in use: at most 1/16 where the budget allows
};

class PageMemory {
 public:
  // Error: kUsage when the budget cannot hold a page and a tail; kResourceExhausted when the host has no such
  // memory.
  static Result<std::unique_ptr<PageMemory>> make(const kernels::PageLayout& layout, uint64_t budget);

  const kernels::PageLayout& layout() const { return layout_; }

  // `slab`: 0 .. layout.num_slabs() - 1 (levels, then the sink).
  SlabPool& slabs(int slab) { return *by_slab_[slab]; }
  const SlabPool& slabs(int slab) const { return *by_slab_[slab]; }
  SlabPool& tails() { return *tails_; }
  std::byte* slab_address(int slab, SlabId id) const { return by_slab_[slab]->address(id); }
  std::byte* tail_address(SlabId id) const { return tails_->address(id); }

  // Slabs of page `index` of a sequence: only page 0 has the sink.
  int slabs_of_page(uint64_t index) const { return index == 0 ? layout_.num_slabs() : layout_.num_levels; }

  // Whether one sequence of n tokens fits when nothing else is there; whole superblocks counted.
  bool fits(uint64_t tokens) const;
  uint64_t max_sequence_tokens() const { return max_sequence_tokens_; }

  uint64_t capacity_bytes() const { return arena_.capacity_bytes() + header_bytes_; }
  uint64_t used_bytes() const;  // allocated slabs and tails
  uint64_t free_bytes() const;  // superblocks nobody holds, and free slots of held ones
  uint64_t slack_bytes() const;
  uint64_t max_pages() const { return header_bytes_ / kernels::kPageHeaderBytes; }

 private:
  PageMemory(const kernels::PageLayout& layout, SuperblockArena arena);
  uint64_t superblocks_for(uint64_t tokens) const;

  kernels::PageLayout layout_;
  SuperblockArena arena_;
  uint64_t header_bytes_ = 0;
  uint64_t max_sequence_tokens_ = 0;
  std::vector<std::unique_ptr<SlabPool>> pools_;  // one per distinct size
  std::vector<SlabPool*> by_slab_;
  SlabPool* tails_ = nullptr;
};

}  // namespace lowkey::kvstore
