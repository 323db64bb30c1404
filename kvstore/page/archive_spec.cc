#include "kvstore/page/archive_spec.h"

#include <algorithm>

namespace lowkey::kvstore {
namespace {

std::vector<int> pages_of(const TokenBudget& budget, int page_tokens, int further_pages) {
  std::vector<int> pages;
  for (size_t bank = 0; bank < budget.heavy.size(); ++bank)
    pages.push_back(budget.archived(static_cast<int>(bank)) / page_tokens + further_pages);
  return pages;
}

}  // namespace

Footprint ArchiveSpec::at_prompt_end(int prompt) const {
  return {.own_pages = static_cast<uint64_t>(prompt / page_tokens()),
          .archived_pages = pages_of(budget(prompt), page_tokens(), 0)};
}

Footprint ArchiveSpec::after(int prompt, int generated) const {
  const TokenBudget kept = budget(prompt);
  const int slots = kept.exact + generated;
  return {
      .own_pages = static_cast<uint64_t>(slots % block_tokens / page_tokens()),
      .archived_pages = pages_of(kept, page_tokens(), slots / block_tokens * (block_tokens / page_tokens()))};
}

Footprint ArchiveSpec::most_after(int prompt, int generated) const {
  Footprint most = after(prompt, generated);
  if (budget(prompt).exact + generated >= block_tokens) most.own_pages = block_tokens / page_tokens();
  return most;
}

uint64_t sequence_bytes(const kernels::PageLayout& own, const ArchiveSpec* archive,
                        const Footprint& footprint) {
  uint64_t bytes = own.bytes_for_tokens(std::max<uint64_t>(1, footprint.own_pages * own.page_tokens));
  for (size_t bank = 0; bank < footprint.archived_pages.size(); ++bank) {
    const kernels::PageLayout& layout = archive->layouts[bank];
    const int pages = footprint.archived_pages[bank];
    for (int slab = 0; slab < layout.num_slabs(); ++slab)
      bytes += uint64_t{layout.slab_bytes[slab]} * (slab < layout.num_levels ? pages : std::min(pages, 1));
  }
  return bytes;
}

}  // namespace lowkey::kvstore
