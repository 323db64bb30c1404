#include "kvstore/dials/tokens/token_budget.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace lowkey::kvstore {
namespace {

// Shares are decimal fractions: 0.3 * 10 is 2.9999999999999996, and means 3.
int share_of(double share, int tokens) {
  return static_cast<int>(std::floor(share * tokens + 1e-9));
}

// The number nearest to `kept` between `least` and `most` that leaves `remainder` (ties: the larger one).
// `most` or something below it, and not less than `least`, must leave it, too.
int round_to_remainder(int kept, int remainder, int unit, int least, int most) {
  const auto at_most = [&](int limit) { return limit - (((limit - remainder) % unit) + unit) % unit; };
  int nearest = at_most(kept + unit / 2);
  if (nearest > most) nearest = at_most(most);
  if (nearest < least) nearest = at_most(least + unit - 1);
  return nearest;
}

}  // namespace

double TokenDial::heavy_of_bank(int bank, int num_banks) const {
  if (shape == BudgetShape::kUniform || num_banks < 2) return heavy;
  const double last = heavy / pyramid_delta, first = 2 * heavy - last;
  return first + (last - first) * bank / (num_banks - 1);
}

TokenBudget token_budget(const TokenDial* dial, int tokens, int num_banks, int page_tokens) {
  LOWKEY_CHECK(tokens >= 0 && num_banks > 0 && page_tokens > 0, "{} tokens, {} banks, pages of {}", tokens,
               num_banks, page_tokens);
  const int recent = dial ? std::min(tokens, share_of(dial->recent, tokens)) : tokens;
  const int heavy = dial ? share_of(dial->heavy, tokens) : 0;
  if (!dial || recent + heavy >= tokens || dial->heavy + dial->recent >= 1 - 1e-9) {
    return {.recent = tokens, .heavy = std::vector<int>(num_banks, 0), .exact = tokens % page_tokens};
  }
  TokenBudget budget{.recent = recent, .exact = (recent + heavy) % page_tokens};
  for (int bank = 0; bank < num_banks; ++bank) {
    const int wanted = recent + share_of(dial->heavy_of_bank(bank, num_banks), tokens);
    const int kept = dial->shape == BudgetShape::kUniform
                         ? wanted
                         : round_to_remainder(wanted, budget.exact, page_tokens, recent, tokens);
    budget.heavy.push_back(kept - recent);
  }
  return budget;
}

}  // namespace lowkey::kvstore
