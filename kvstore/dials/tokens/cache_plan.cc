#include "kvstore/dials/tokens/cache_plan.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace lowkey::kvstore {

CachePlan choose_tokens(const TokenScorer& scorer, const BankSignal& signal, int recent, int heavy) {
  LOWKEY_CHECK(recent >= 0 && heavy >= 0 && recent + heavy <= signal.tokens, "{} + {} of {} tokens", recent,
               heavy, signal.tokens);
  const int older = signal.tokens - recent;
  const bool by_score = heavy > 0 && heavy < older;
  LOWKEY_CHECK(!by_score || signal.values != nullptr, "{} of {} tokens by scores that nobody has", heavy,
               older);
  CachePlan plan{.kept = recent + heavy};
  plan.slots.reserve(static_cast<size_t>(signal.num_heads) * plan.kept);
  std::vector<float> scores(signal.tokens);
  std::vector<int32_t> order(older);
  for (int head = 0; head < signal.num_heads; ++head) {
    std::iota(order.begin(), order.end(), 0);
    if (by_score) {
      const float* values = signal.values + static_cast<size_t>(head) * signal.stride;
      scorer.score({values, static_cast<size_t>(signal.tokens)}, scores);
      const auto better = [&](int32_t a, int32_t b) {
        return scores[a] > scores[b] || (scores[a] == scores[b] && a > b);
      };
      std::nth_element(order.begin(), order.begin() + heavy, order.end(), better);
      std::sort(order.begin(), order.begin() + heavy);
    }
    plan.slots.insert(plan.slots.end(), order.begin(), order.begin() + heavy);
    for (int slot = older; slot < signal.tokens; ++slot) plan.slots.push_back(slot);
  }
  return plan;
}

}  // namespace lowkey::kvstore
