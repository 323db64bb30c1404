// The order of token ids by their logits: what sampling, its filters and top_logprobs mean by "the most
// likely".
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace lowkey::kernels {

// Orders token ids, best first; ties go to the lowest.
struct BetterToken {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

// The `count` best token ids, best first; all, where there are fewer.
inline std::vector<int32_t> best_tokens(std::span<const float> logits, size_t count) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  count = std::min(count, ids.size());
  const BetterToken better{logits};
  if (count < ids.size())
    std::nth_element(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(count), ids.end(), better);
  ids.resize(count);
  std::sort(ids.begin(), ids.end(), better);
  return ids;
}

}  // namespace lowkey::kernels
