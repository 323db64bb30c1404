#include "kvstore/page/page_memory.h"

#include <algorithm>
#include <utility>

#include "base/bytes.h"

namespace lowkey::kvstore {
namespace {

using kernels::kPageHeaderBytes;
using kernels::PageLayout;

// Sizes of all slabs, then of the tail.
std::vector<uint64_t> sizes_of(const PageLayout& layout) {
  std::vector<uint64_t> sizes(layout.slab_bytes.begin(), layout.slab_bytes.begin() + layout.num_slabs());
  sizes.push_back(layout.tail_bytes);
  return sizes;
}

}  // namespace

Result<std::unique_ptr<PageMemory>> PageMemory::make(const PageLayout& layout, uint64_t budget) {
  const std::vector<uint64_t> sizes = sizes_of(layout);
  const uint64_t superblock = SuperblockArena::choose_superblock_bytes(sizes, budget);
  // Every superblock could hold pages, and each page wants a header.
  const uint64_t headers_per_superblock = superblock / layout.slab_bytes[0];
  const uint64_t count = budget / (superblock + headers_per_superblock * kPageHeaderBytes);
  if (count > UINT32_MAX / headers_per_superblock) {
    return Error{Code::kUsage,
                 fmt::format("kv-bytes: {} is more than page ids can name", format_bytes(budget)),
                 "kv-bytes"};
  }
  LOWKEY_ASSIGN(arena, SuperblockArena::map(static_cast<uint32_t>(count), superblock));
  std::unique_ptr<PageMemory> memory(new PageMemory(layout, std::move(arena)));
  if (memory->max_sequence_tokens() == 0) {
    const uint64_t needed = memory->superblocks_for(layout.page_tokens) * superblock;
    return Error{
        Code::kUsage,
        fmt::format("kv-bytes: expected at least {} per rank (one page of {} tokens and its tail), found {}",
                    format_bytes(needed), layout.page_tokens, format_bytes(budget)),
        "kv-bytes"};
  }
  return memory;
}

PageMemory::PageMemory(const PageLayout& layout, SuperblockArena arena)
    : layout_(layout), arena_(std::move(arena)) {
  for (const uint64_t size : sizes_of(layout_)) {
    auto pool = std::find_if(pools_.begin(), pools_.end(), [&](auto& p) { return p->slab_bytes() == size; });
    if (pool == pools_.end()) {
      pools_.push_back(std::make_unique<SlabPool>(arena_, size));
      pool = std::prev(pools_.end());
    }
    by_slab_.push_back(pool->get());
  }
  tails_ = by_slab_.back();
  by_slab_.pop_back();
  header_bytes_ = uint64_t{arena_.num_superblocks()} * by_slab_[0]->slabs_per_superblock() * kPageHeaderBytes;
  uint64_t pages = 0;
  while (superblocks_for((pages + 1) * layout_.page_tokens) <= arena_.num_superblocks()) ++pages;
  max_sequence_tokens_ = pages == 0 ? 0 : (pages + 1) * layout_.page_tokens - 1;
}

uint64_t PageMemory::superblocks_for(uint64_t tokens) const {
  const uint64_t pages = tokens / layout_.page_tokens;
  uint64_t superblocks = 0;
  for (const auto& pool : pools_) {
    uint64_t slabs = pool.get() == tails_ ? 1 : 0;
    for (int slab = 0; slab < layout_.num_slabs(); ++slab) {
      if (by_slab_[slab] == pool.get())
        slabs += slab < layout_.num_levels ? pages : std::min<uint64_t>(pages, 1);
    }
    superblocks += (slabs + pool->slabs_per_superblock() - 1) / pool->slabs_per_superblock();
  }
  return superblocks;
}

bool PageMemory::fits(uint64_t tokens) const {
  return tokens <= max_sequence_tokens_;
}

uint64_t PageMemory::used_bytes() const {
  uint64_t bytes = 0;
  for (const auto& pool : pools_) bytes += pool->used_bytes();
  return bytes;
}

uint64_t PageMemory::free_bytes() const {
  uint64_t bytes = arena_.free_superblocks() * arena_.superblock_bytes();
  for (const auto& pool : pools_) bytes += pool->free_bytes();
  return bytes;
}

uint64_t PageMemory::slack_bytes() const {
  uint64_t bytes = 0;
  for (const auto& pool : pools_) bytes += pool->slack_bytes();
  return bytes;
}

}  // namespace lowkey::kvstore
