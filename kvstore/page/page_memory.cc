#include "kvstore/page/page_memory.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/bytes.h"

namespace lowkey::kvstore {
namespace {

using kernels::kPageHeaderBytes;
using kernels::PageLayout;

void add_slab_sizes(const PageLayout& layout, std::vector<uint64_t>* sizes) {
  sizes->insert(sizes->end(), layout.slab_bytes.begin(), layout.slab_bytes.begin() + layout.num_slabs());
}

// The distinct sizes of slabs and tails.
std::vector<uint64_t> sizes_of(const PageLayout& layout, const std::optional<ArchiveSpec>& archive) {
  std::vector<uint64_t> sizes{layout.tail_bytes};
  add_slab_sizes(layout, &sizes);
  if (archive) {
    for (const PageLayout& bank : archive->layouts) add_slab_sizes(bank, &sizes);
  }
  std::ranges::sort(sizes);
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

// One f32 for every bank and KV head.
uint64_t score_bytes_per_token(const PageLayout& layout, const std::optional<ArchiveSpec>& archive) {
  if (!archive || !archive->needs_scores()) return 0;
  return sizeof(float) * layout.num_banks * layout.num_kv_heads;
}

// Room for the longest prompt that this budget, or the model, allows: scores beside exact pages.
uint64_t score_share(const PageLayout& layout, uint64_t per_token, const PageMemoryOptions& options) {
  if (per_token == 0) return 0;
  const double share = per_token / (per_token + layout.bytes_per_token());
  const auto affordable = static_cast<uint64_t>(share * static_cast<double>(options.budget));
  const uint64_t wanted =
      options.max_tokens > affordable / per_token ? affordable : options.max_tokens * per_token;
  return OffsetAllocator::rounded(wanted);
}

void check_archive(const PageLayout& layout, const ArchiveSpec& archive) {
  LOWKEY_CHECK(archive.num_banks() == layout.num_banks, "{} archives of {} banks", archive.num_banks(),
               layout.num_banks);
  LOWKEY_CHECK(archive.block_tokens > 0 && archive.block_tokens % layout.page_tokens == 0,
               "blocks of {} tokens, pages of {}", archive.block_tokens, layout.page_tokens);
  for (const PageLayout& bank : archive.layouts) {
    LOWKEY_CHECK(bank.num_banks == 1 && bank.page_tokens == layout.page_tokens,
                 "archive of {} banks in pages of {}, own pages of {}", bank.num_banks, bank.page_tokens,
                 layout.page_tokens);
  }
}

Result<SuperblockArena> make_arena(uint32_t superblocks, uint64_t bytes, const PageMemoryOptions& options) {
  if (!options.allocate) return SuperblockArena::map(superblocks, bytes);
  return SuperblockArena::over(options.allocate(superblocks * bytes), superblocks, bytes);
}

}  // namespace

Result<std::unique_ptr<PageMemory>> PageMemory::make(const PageLayout& layout, PageMemoryOptions options) {
  if (options.archive) check_archive(layout, *options.archive);
  const std::vector<uint64_t> sizes = sizes_of(layout, options.archive);
  const uint64_t per_token = score_bytes_per_token(layout, options.archive);
  const uint64_t scores = std::min(options.budget, score_share(layout, per_token, options));
  const uint64_t budget = options.budget - scores;
  const uint64_t superblock = SuperblockArena::choose_superblock_bytes(sizes, budget);
  // Every superblock could hold pages, and each page wants a header.
  const uint64_t headers_per_superblock = superblock / layout.slab_bytes[0];
  const uint64_t count = budget / (superblock + headers_per_superblock * kPageHeaderBytes);
  if (count > UINT32_MAX / (superblock / sizes.front())) {
    return Error{Code::kUsage,
                 fmt::format("kv-bytes: {} is more than page ids can name", format_bytes(budget)),
                 "kv-bytes"};
  }
  LOWKEY_ASSIGN(arena, make_arena(static_cast<uint32_t>(count), superblock, options));
  std::unique_ptr<PageMemory> memory(new PageMemory(layout, std::move(options.archive), std::move(arena)));
  memory->score_bytes_per_token_ = per_token;
  LOWKEY_TRY(memory->map_scores(scores, options));
  memory->max_sequence_tokens_ =
      memory->find_max_sequence_tokens(count * (superblock / sizes.front() + 1) * layout.page_tokens);
  if (memory->max_sequence_tokens() == 0) {
    const uint64_t needed =
        memory->superblocks_for(memory->peaks(layout.page_tokens, 0)[0]) * superblock + scores;
    return Error{
        Code::kUsage,
        fmt::format("kv-bytes: expected at least {} per rank (one page of {} tokens and its tail), found {}",
                    format_bytes(needed), layout.page_tokens, format_bytes(options.budget)),
        "kv-bytes"};
  }
  return memory;
}

PageMemory::PageMemory(const PageLayout& layout, std::optional<ArchiveSpec> archive, SuperblockArena arena)
    : layout_(layout), archive_(std::move(archive)), arena_(std::move(arena)) {
  for (int slab = 0; slab < layout_.num_slabs(); ++slab)
    by_slab_.push_back(pool_of(layout_.slab_bytes[slab], slab < layout_.num_levels ? slab : 0));
  tails_ = pool_of(layout_.tail_bytes);
  for (size_t bank = 0; archive_ && bank < archive_->layouts.size(); ++bank) {
    const PageLayout& of = archive_->layouts[bank];
    std::vector<SlabPool*>& pools = by_archive_slab_.emplace_back();
    for (int slab = 0; slab < of.num_slabs(); ++slab) pools.push_back(pool_of(of.slab_bytes[slab]));
  }
  header_bytes_ = uint64_t{arena_.num_superblocks()} * by_slab_[0]->slabs_per_superblock() * kPageHeaderBytes;
}

SlabPool* PageMemory::pool_of(uint64_t slab_bytes, int upper_level) {
  for (size_t i = 0; i < pools_.size(); ++i) {
    if (pools_[i]->slab_bytes() == slab_bytes && pool_levels_[i] == upper_level) return pools_[i].get();
  }
  pools_.push_back(std::make_unique<SlabPool>(arena_, slab_bytes));
  pool_levels_.push_back(upper_level);
  return pools_.back().get();
}

Status PageMemory::map_scores(uint64_t bytes, const PageMemoryOptions& options) {
  if (bytes == 0) return {};
  LOWKEY_ASSIGN(arena, make_arena(1, bytes, options));
  score_arena_ = std::move(arena);
  scores_ = std::make_unique<OffsetAllocator>(bytes);
  return {};
}

// The sequence at its largest: at the end of its prompt, or later.
std::vector<Footprint> PageMemory::peaks(uint64_t prompt, uint64_t generated) const {
  if (!archive_) return {{.own_pages = (prompt + generated) / layout_.page_tokens}};
  return {archive_->at_prompt_end(static_cast<int>(prompt)),
          archive_->most_after(static_cast<int>(prompt), static_cast<int>(generated))};
}

uint64_t PageMemory::peak_bytes(uint64_t prompt, uint64_t generated) const {
  uint64_t most = 0;
  for (const Footprint& footprint : peaks(prompt, generated)) most = std::max(most, bytes(footprint));
  return most;
}

uint64_t PageMemory::resident_bytes(uint64_t prompt, uint64_t generated) const {
  if (!archive_) return bytes(peaks(prompt, generated)[0]);
  return bytes(archive_->after(static_cast<int>(prompt), static_cast<int>(generated)));
}

double PageMemory::bytes_per_token() const {
  const auto at = [this](uint64_t tokens) { return static_cast<double>(resident_bytes(tokens, 0)); };
  return (at(2 * kLongPrompt) - at(kLongPrompt)) / kLongPrompt;
}

double PageMemory::compression_ratio() const {
  return static_cast<double>(layout_.bf16_bytes_for_tokens(kLongPrompt)) /
         static_cast<double>(resident_bytes(kLongPrompt, 0));
}

uint64_t PageMemory::superblocks_for(const Footprint& footprint) const {
  std::vector<std::pair<const SlabPool*, uint64_t>> slabs{{tails_, 1}};
  const auto add = [&](const PageLayout& layout, const std::vector<SlabPool*>& pools, uint64_t pages) {
    for (int slab = 0; slab < layout.num_slabs(); ++slab)
      slabs.push_back({pools[slab], slab < layout.num_levels ? pages : std::min<uint64_t>(pages, 1)});
  };
  add(layout_, by_slab_, footprint.own_pages);
  for (size_t bank = 0; bank < footprint.archived_pages.size(); ++bank)
    add(archive_->layouts[bank], by_archive_slab_[bank], footprint.archived_pages[bank]);
  uint64_t superblocks = 0;
  for (const auto& pool : pools_) {
    uint64_t count = 0;
    for (const auto& [of, wanted] : slabs) count += of == pool.get() ? wanted : 0;
    superblocks += (count + pool->slabs_per_superblock() - 1) / pool->slabs_per_superblock();
  }
  return superblocks;
}

bool PageMemory::fits(uint64_t prompt, uint64_t generated) const {
  if (prompt + generated > uint64_t{INT32_MAX}) return false;
  if (score_bytes(prompt) > score_capacity_bytes()) return false;
  for (const Footprint& footprint : peaks(prompt, generated)) {
    if (superblocks_for(footprint) > arena_.num_superblocks()) return false;
  }
  return true;
}

uint64_t PageMemory::find_max_sequence_tokens(uint64_t limit) const {
  const auto holds = [&](uint64_t tokens) { return fits(tokens, 0) && (tokens == 0 || fits(1, tokens - 1)); };
  uint64_t held = 0, too_many = std::min<uint64_t>(limit, INT32_MAX) + 1;
  while (held + 1 < too_many) {
    const uint64_t middle = std::midpoint(held, too_many);
    (holds(middle) ? held : too_many) = middle;
  }
  // Less than a page is no use.
  return held < static_cast<uint64_t>(layout_.page_tokens) ? 0 : held;
}

uint64_t PageMemory::used_bytes() const {
  uint64_t bytes = scores_ ? scores_->used() : 0;
  for (const auto& pool : pools_) bytes += pool->used_bytes();
  return bytes;
}

uint64_t PageMemory::free_bytes() const {
  uint64_t bytes = arena_.free_superblocks() * arena_.superblock_bytes();
  for (const auto& pool : pools_) bytes += pool->free_bytes();
  return bytes;
}

uint64_t PageMemory::slack_bytes() const {
  uint64_t bytes = scores_ ? scores_->capacity() - scores_->used() : 0;
  for (const auto& pool : pools_) bytes += pool->slack_bytes();
  return bytes;
}

}  // namespace lowkey::kvstore
