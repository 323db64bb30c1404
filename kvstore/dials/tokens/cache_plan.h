// Which tokens of one bank stay: the outcome of the tokens dial, per KV head, for whoever moves the rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvstore/dials/tokens/token_scorer.h"

namespace lowkey::kvstore {

struct CachePlan {
  int kept = 0;                // tokens per head
  std::vector<int32_t> slots;  // [head][kept], ascending: position order is kept

  std::span<const int32_t> of_head(int head) const {
    return std::span(slots).subspan(static_cast<size_t>(head) * kept, kept);
  }
};

// What one bank's observer has seen: [num_heads][stride], `tokens` of each row valid.
struct BankSignal {
  const float* values = nullptr;  // may be null when nothing is chosen by score
  int num_heads = 0;
  int stride = 0;
  int tokens = 0;
};

// The last `recent` tokens, and of the others the `heavy` ones with the highest score; of equal scores the
// newer one. REQUIRES: recent + heavy <= tokens.
CachePlan choose_tokens(const TokenScorer& scorer, const BankSignal& signal, int recent, int heavy);

}  // namespace lowkey::kvstore
