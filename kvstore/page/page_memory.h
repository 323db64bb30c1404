// The device tier's memory on one rank: an arena, and one slab pool for every size that the layouts have,
// upper levels apart.
//
// `budget` covers everything: slabs, sinks, the tails of running sequences, 128 bytes of header for every
// page of its own that a sequence can have (archived pages have no identity, and none), and the scores by
// which tokens of prompts are chosen. All ranks of a replica make it from equal numbers, so that slab ids
// mean the same everywhere.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/page/page_layout.h"
#include "kvstore/page/archive_spec.h"
#include "kvstore/page/offset_allocator.h"
#include "kvstore/page/slab_pool.h"

namespace lowkey::kvstore {

// Bytes of the device tier; capacity = used + evictable + free + slack.
struct Ledger {
  uint64_t capacity = 0;   // what the budget gave: superblocks, headers, scores
  uint64_t used = 0;       // pages somebody refers to, archived pages, tails, scores of prompts under way
  uint64_t evictable = 0;  // published pages nobody refers to
  uint64_t free = 0;       // never allocated, or returned
  uint64_t slack = 0;  // behind the last slab of superblocks in use (at most 1/16 where the budget allows),
                       // and room for scores that no prompt uses
};

struct PageMemoryOptions {
  uint64_t budget = 0;
  std::optional<ArchiveSpec> archive;
  uint64_t max_tokens = UINT64_MAX;  // of any sequence, as the model has it: bounds the scores
  // Memory of a device, for pages and scores; empty: the host's. Nobody looks into it here.
  std::function<std::unique_ptr<kernels::Buffer>(uint64_t bytes)> allocate;
};

class PageMemory {
 public:
  // Error: kUsage when the budget cannot hold a page and a tail; kResourceExhausted when the host has no such
  // memory.
  static Result<std::unique_ptr<PageMemory>> make(const kernels::PageLayout& layout,
                                                  PageMemoryOptions options);
  static Result<std::unique_ptr<PageMemory>> make(const kernels::PageLayout& layout, uint64_t budget) {
    return make(layout, PageMemoryOptions{.budget = budget});
  }

  const kernels::PageLayout& layout() const { return layout_; }
  const std::optional<ArchiveSpec>& archive() const { return archive_; }

  // `slab`: 0 .. layout.num_slabs() - 1 (levels, then the sink).
  SlabPool& slabs(int slab) { return *by_slab_[slab]; }
  const SlabPool& slabs(int slab) const { return *by_slab_[slab]; }
  SlabPool& tails() { return *tails_; }
  std::byte* slab_address(int slab, SlabId id) const { return by_slab_[slab]->address(id); }
  std::byte* tail_address(SlabId id) const { return tails_->address(id); }

  // Slabs of page `index` of a sequence: only page 0 has the sink.
  int slabs_of_page(uint64_t index) const { return slabs_of_page(layout_, index); }

  // The same of archived pages.
  SlabPool& archive_slabs(int bank, int slab) const { return *by_archive_slab_[bank][slab]; }
  int archive_slabs_of_page(int bank, uint64_t index) const {
    return slabs_of_page(archive_->layouts[bank], index);
  }

  // Room for scores: ranges of bytes, [num_banks][num_kv_heads][tokens] f32 each. Only the leader allocates.
  OffsetAllocator& scores() { return *scores_; }
  std::byte* score_address(uint64_t offset) const { return score_arena_->address(0) + offset; }
  uint64_t score_bytes(uint64_t tokens) const {  // of a prompt; 0: no archive, or nothing to choose
    return scores_ ? OffsetAllocator::rounded(tokens * score_bytes_per_token_) : 0;
  }
  uint64_t score_capacity_bytes() const { return scores_ ? scores_->capacity() : 0; }

  // Bytes of one sequence that holds this and a tail, as the ledger counts them; scores apart.
  uint64_t bytes(const Footprint& footprint) const {
    return sequence_bytes(layout_, archive_ ? &*archive_ : nullptr, footprint);
  }
  // The most bytes that a prompt and some further tokens ever take, and what they take in the end.
  uint64_t peak_bytes(uint64_t prompt, uint64_t generated) const;
  uint64_t resident_bytes(uint64_t prompt, uint64_t generated) const;
  // What a long prompt takes: marginal bytes per token, and bf16 bytes over bytes at kLongPrompt tokens.
  static constexpr uint64_t kLongPrompt = 8192;
  double bytes_per_token() const;
  double compression_ratio() const;

  // Whether one sequence fits when nothing else is there; whole superblocks counted.
  bool fits(uint64_t prompt, uint64_t generated) const;
  // Longest prompt + answer that fits, however it is divided.
  uint64_t max_sequence_tokens() const { return max_sequence_tokens_; }

  uint64_t capacity_bytes() const { return arena_.capacity_bytes() + header_bytes_ + score_capacity_bytes(); }
  uint64_t used_bytes() const;  // allocated slabs, tails and scores
  uint64_t free_bytes() const;  // superblocks nobody holds, and free slots of held ones
  uint64_t slack_bytes() const;
  uint32_t num_superblocks() const { return arena_.num_superblocks(); }
  uint64_t superblock_bytes() const { return arena_.superblock_bytes(); }
  uint64_t max_pages() const { return header_bytes_ / kernels::kPageHeaderBytes; }

 private:
  PageMemory(const kernels::PageLayout& layout, std::optional<ArchiveSpec> archive, SuperblockArena arena);
  static int slabs_of_page(const kernels::PageLayout& layout, uint64_t index) {
    return index == 0 ? layout.num_slabs() : layout.num_levels;
  }
  // Upper levels (> 0) have pools of their own: a level that is given up must leave whole superblocks free,
  // not some that hold the sink of a long sequence, which happens to be as large.
  SlabPool* pool_of(uint64_t slab_bytes, int upper_level = 0);
  Status map_scores(uint64_t bytes, const PageMemoryOptions& options);
  std::vector<Footprint> peaks(uint64_t prompt, uint64_t generated) const;
  uint64_t superblocks_for(const Footprint& footprint) const;
  uint64_t find_max_sequence_tokens(uint64_t limit) const;

  kernels::PageLayout layout_;
  std::optional<ArchiveSpec> archive_;
  SuperblockArena arena_;
  uint64_t header_bytes_ = 0;
  uint64_t max_sequence_tokens_ = 0;
  std::vector<std::unique_ptr<SlabPool>> pools_;  // one per distinct size, and of each upper level
  std::vector<int> pool_levels_;                  // what they are of; 0: everything else
  std::vector<SlabPool*> by_slab_;
  std::vector<std::vector<SlabPool*>> by_archive_slab_;  // [bank][slab]
  SlabPool* tails_ = nullptr;
  uint64_t score_bytes_per_token_ = 0;
  std::optional<SuperblockArena> score_arena_;
  std::unique_ptr<OffsetAllocator> scores_;
};

}  // namespace lowkey::kvstore
