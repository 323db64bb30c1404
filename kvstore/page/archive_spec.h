// The archive of a recipe that keeps a prompt exact until it is complete: what its pages are, what goes into
// them, and how much that is. Then the sequence's own pages are exact; tokens move to archived pages when the
// prompt is complete (those that the tokens dial keeps), and in blocks afterwards.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/page/page_layout.h"
#include "kvstore/dials/tokens/token_budget.h"

namespace lowkey::kvstore {

// Pages that one sequence holds, beside its tail.
struct Footprint {
  uint64_t own_pages = 0;
  std::vector<int> archived_pages;  // [bank]; empty: no archive
};

struct ArchiveSpec {
  std::vector<kernels::PageLayout> layouts;  // [bank], of one bank each, page_tokens as the sequence's own
  std::optional<TokenDial> tokens;           // none: all tokens are kept
  int block_tokens = 0;                      // exact tokens that move together; a multiple of page_tokens

  int num_banks() const { return static_cast<int>(layouts.size()); }
  int page_tokens() const { return layouts[0].page_tokens; }
  // Whether some prompt's tokens are chosen by score, so that somebody has to keep the scores.
  bool needs_scores() const { return tokens && tokens->heavy > 0 && tokens->heavy + tokens->recent < 1; }
  TokenBudget budget(int prompt) const {
    return token_budget(tokens ? &*tokens : nullptr, prompt, num_banks(), page_tokens());
  }

  // When the prompt has just moved: its own pages go only after its archived ones are written.
  Footprint at_prompt_end(int prompt) const;
  // The most from then on until `generated` further tokens are in the cache: a block, too, goes after it has
  // been written.
  Footprint most_after(int prompt, int generated) const;
  // What is left when all moves of `generated` further tokens are done.
  Footprint after(int prompt, int generated) const;
};

// Bytes of one sequence that holds this and a tail, everything counted: slabs, sinks, headers of its own
// pages (archived ones have no identity, and no header). `archive`: null where the recipe has none.
uint64_t sequence_bytes(const kernels::PageLayout& own, const ArchiveSpec* archive,
                        const Footprint& footprint);

}  // namespace lowkey::kvstore
