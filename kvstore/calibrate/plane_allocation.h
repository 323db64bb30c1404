// Which group of which stored vector gets how many bits, so that a sequence fits its bytes and loses least.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "kernels/page/page_layout.h"
#include "kvstore/calibrate/feature_coder.h"
#include "kvstore/profile/profile.h"

namespace lowkey::kvstore {

// The ratio of a budget holds at this many tokens, all bytes counted (PageLayout::bytes_for_tokens).
inline constexpr uint64_t kBudgetTokens = 2048;

// Loss (nats per token) of one group when it alone is coded in each of kWidths.
using GroupLoss = std::array<double, kWidths.size()>;
// [vector][group]
using LossTable = std::vector<std::vector<GroupLoss>>;

// Bits that minimize the sum of losses among those of at most bf16 / ratio bytes, by marginal loss per byte:
// a common price of a bit for all groups, then the best of what still fits. Each of `ratios` is a level, the
// coarsest first: a level starts from the one below it and adds what is worth most then, in steps that can be
// read fast (2 bits do not become 8 in one level). `frame`: the page without its vectors; every vector is
// coded as `frame.key` says but for its bits. Error: kUsage when not even pages without any bits are that
// small, or when the ratios do not descend.
Result<Budget> allocate_planes(const LossTable& losses, std::span<const double> ratios,
                               const kernels::PageSpec& frame, const kernels::CacheShape& shape);

// "4x"; of levels "5x-2x".
std::string budget_name(std::span<const double> ratios);

// The page of such a budget, bases left out: for its bytes. (Groups without bits have none, stored or not.)
kernels::PageSpec spec_of_bits(const Budget& budget, const kernels::PageSpec& frame);

// Ranks instead of bits (MatryoshkaKV, arXiv:2410.14731, algorithm 1): losses[vector][n] is the loss when
// that vector alone keeps its first n groups. Starting from `from` (groups kept by every vector), takes away
// the group that costs least until at most `keep` of all groups are left. The result has kFullBits or 0 per
// group.
struct RankChoice {
  std::vector<int> groups;  // kept, by vector
};
RankChoice allocate_ranks(const std::vector<std::vector<double>>& losses, const RankChoice& from,
                          double keep);
Budget budget_of_ranks(const std::string& name, const RankChoice& ranks, int groups);

}  // namespace lowkey::kvstore
