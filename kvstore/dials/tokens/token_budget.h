// How many tokens of a prompt are kept, by numbers alone: every rank and every forecast comes to the same.
//
// MiniKV (arXiv:2411.18077): the newest floor(recent n), and floor(heavy n) of the others by score. Pyramid:
// the heavy share falls linearly with depth, from 2 heavy - heavy / delta in the first bank to heavy / delta
// in the last.
//
// Kept tokens go to archived pages; the newest `exact` of them, kept mod page_tokens, stay exact. Banks of
// one sequence share the slots of their exact tokens, so a pyramid rounds each bank's count to the nearest
// with the uniform count's remainder: at most page_tokens / 2 tokens off the paper.
#pragma once

#include <vector>

#include "kvstore/dials/tokens/token_dial.h"

namespace lowkey::kvstore {

struct TokenBudget {
  int recent = 0;          // the newest tokens, whatever their score
  std::vector<int> heavy;  // [bank], of the others, by score
  int exact = 0;           // of the kept ones, the newest; < page_tokens

  int kept(int bank) const { return recent + heavy[bank]; }
  int archived(int bank) const { return kept(bank) - exact; }  // a multiple of page_tokens
};

// `dial` null: every token is kept. Nothing is dropped either where heavy + recent are all tokens, or shares
// that add up to one.
TokenBudget token_budget(const TokenDial* dial, int tokens, int num_banks, int page_tokens);

}  // namespace lowkey::kvstore
