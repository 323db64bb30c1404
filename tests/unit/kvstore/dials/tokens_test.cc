// The tokens dial against the papers' definitions, written out plainly.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "kvstore/dials/tokens/cache_plan.h"
#include "kvstore/dials/tokens/token_budget.h"

namespace lowkey::kvstore {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(TokenBudget, UniformSharesAreFloors) {
  const TokenDial dial;  // MiniKV's quarter and quarter
  for (const int n : {0, 1, 3, 4, 15, 16, 100, 1023, 4096}) {
    const TokenBudget budget = token_budget(&dial, n, 3, 16);
    EXPECT_EQ(budget.recent, n / 4);
    EXPECT_EQ(budget.heavy, std::vector<int>(3, n / 4));
    EXPECT_EQ(budget.exact, n / 4 * 2 % 16);
    EXPECT_EQ(budget.archived(1) + budget.exact, budget.kept(1));
    EXPECT_EQ(budget.archived(1) % 16, 0);
  }
  const TokenDial decimals{.heavy = 0.3, .recent = 0.1};
  EXPECT_EQ(token_budget(&decimals, 10, 1, 16).heavy[0], 3);
  EXPECT_EQ(token_budget(&decimals, 10, 1, 16).recent, 1);
}

TEST(TokenBudget, NothingIsDroppedWhenThereIsRoomForAll) {
  for (const BudgetShape shape : {BudgetShape::kUniform, BudgetShape::kPyramid}) {
    const TokenDial halves{.heavy = 0.5, .recent = 0.5, .shape = shape},
        more{.heavy = 0.9, .recent = 0.4, .shape = shape};
    for (const int n : {1, 2, 17, 63, 1000}) {
      for (const TokenDial* dial : {&halves, &more, static_cast<const TokenDial*>(nullptr)}) {
        const TokenBudget budget = token_budget(dial, n, 4, 32);
        for (int bank = 0; bank < 4; ++bank) EXPECT_EQ(budget.kept(bank), n);
        EXPECT_EQ(budget.exact, n % 32);
      }
    }
  }
}

// 2 h - h / 7 in the first bank, h / 7 in the last, linear between, h in the mean (MiniKV, section 3).
TEST(TokenBudget, PyramidIsLinearInDepthToHalfAPage) {
  const TokenDial dial{.heavy = 0.25, .recent = 0.25, .shape = BudgetShape::kPyramid};
  for (const int page_tokens : {16, 32}) {
    for (int n = 64; n < 5000; n = n * 5 / 4 + 1) {
      const TokenBudget budget = token_budget(&dial, n, 32, page_tokens);
      EXPECT_EQ(budget.recent, n / 4);
      EXPECT_EQ(budget.exact, n / 4 * 2 % page_tokens);
      for (int bank = 0; bank < 32; ++bank) {
        const double share = (2 * 0.25 - 0.25 / 7) + (0.25 / 7 - (2 * 0.25 - 0.25 / 7)) * bank / 31.0;
        EXPECT_GE(budget.heavy[bank], 0);
        EXPECT_LE(budget.kept(bank), n);
        EXPECT_EQ(budget.kept(bank) % page_tokens, budget.exact)
            << "all banks share the slots of their exact tokens";
        // Where the rounding would undercut the recent tokens, it goes up instead.
        EXPECT_LE(std::abs(budget.heavy[bank] - share * n), n >= 600 ? page_tokens / 2 + 1 : page_tokens)
            << n << " " << bank;
      }
      EXPECT_TRUE(std::ranges::is_sorted(budget.heavy, std::greater<>()));
    }
  }
}

TEST(TokenBudget, PyramidOfAShortPromptStaysInside) {
  const TokenDial dial{.heavy = 0.4, .recent = 0.05, .shape = BudgetShape::kPyramid};
  for (int n = 1; n < 200; ++n) {
    const TokenBudget budget = token_budget(&dial, n, 5, 32);
    for (int bank = 0; bank < 5; ++bank) {
      EXPECT_GE(budget.heavy[bank], 0);
      EXPECT_LE(budget.kept(bank), n);
      EXPECT_EQ(budget.kept(bank) % 32, budget.exact);
    }
  }
}

// One head, by sorting everything.
std::vector<int32_t> twin(const std::vector<double>& scores, int recent, int heavy) {
  const int n = static_cast<int>(scores.size());
  std::vector<std::pair<double, int>> order;
  for (int i = 0; i < n - recent; ++i) order.push_back({scores[i], i});
  std::sort(order.rbegin(), order.rend());
  std::vector<int32_t> kept;
  for (int i = 0; i < heavy; ++i) kept.push_back(order[i].second);
  for (int i = n - recent; i < n; ++i) kept.push_back(i);
  std::sort(kept.begin(), kept.end());
  return kept;
}

std::vector<double> twin_scores(TokenScore score, const float* signal, int n) {
  std::vector<double> out(signal, signal + n);
  if (score == TokenScore::kKeyNorm)
    for (double& x : out) x = -x;
  if (score == TokenScore::kWindowSum) {
    for (int i = 0; i < n; ++i) {
      out[i] = *std::max_element(signal + std::max(0, i - 3), signal + std::min(n, i + 4));
    }
  }
  return out;
}

TEST(CachePlan, EveryScoreKeepsWhatThePlainSortKeeps) {
  std::mt19937 random(1);
  for (const TokenScore score : {TokenScore::kColumnSum, TokenScore::kWindowSum, TokenScore::kKeyNorm}) {
    for (int round = 0; round < 200; ++round) {
      const int n = 1 + random() % 300, heads = 1 + random() % 4, stride = n + random() % 5;
      const int recent = random() % (n + 1), heavy = random() % (n - recent + 1);
      std::vector<float> signal(heads * stride);
      for (float& x : signal) x = static_cast<float>(random() % 17);  // many ties
      const CachePlan plan =
          choose_tokens(TokenScorer::of(score), {signal.data(), heads, stride, n}, recent, heavy);
      ASSERT_EQ(plan.kept, recent + heavy);
      for (int head = 0; head < heads; ++head) {
        const auto kept = plan.of_head(head);
        EXPECT_EQ(std::vector<int32_t>(kept.begin(), kept.end()),
                  twin(twin_scores(score, signal.data() + head * stride, n), recent, heavy));
      }
    }
  }
}

TEST(CachePlan, TiesGoToTheNewerToken) {
  const std::vector<float> equal(6, 1.0f);
  const CachePlan plan =
      choose_tokens(TokenScorer::of(TokenScore::kColumnSum), {equal.data(), 1, 6, 6}, 1, 2);
  EXPECT_EQ(plan.slots, (std::vector<int32_t>{3, 4, 5}));
}

TEST(CachePlan, WhatIsNoNumberIsDroppedFirst) {
  const std::vector<float> signal{NAN, 1, NAN, 2, -kInf, 3};
  for (const TokenScore score : {TokenScore::kColumnSum, TokenScore::kKeyNorm}) {
    const CachePlan plan = choose_tokens(TokenScorer::of(score), {signal.data(), 1, 6, 6}, 1, 2);
    EXPECT_EQ(plan.kept, 3);
    EXPECT_TRUE(std::ranges::is_sorted(plan.slots));
  }
  const CachePlan plan =
      choose_tokens(TokenScorer::of(TokenScore::kColumnSum), {signal.data(), 1, 6, 6}, 1, 2);
  EXPECT_EQ(plan.slots, (std::vector<int32_t>{1, 3, 5}));
}

TEST(CachePlan, KeepingAllNeedsNoScores) {
  const CachePlan plan = choose_tokens(TokenScorer::of(TokenScore::kColumnSum), {nullptr, 2, 0, 4}, 3, 1);
  EXPECT_EQ(plan.slots, (std::vector<int32_t>{0, 1, 2, 3, 0, 1, 2, 3}));
}

TEST(TokenScorer, TheWindowIsTheLast32Rows) {
  const TokenScorer& snap = TokenScorer::of(TokenScore::kWindowSum);
  EXPECT_EQ(snap.signal(), TokenScorer::Signal::kWindowSums);
  EXPECT_EQ(snap.window_first(100), 68);
  EXPECT_EQ(snap.window_first(5), 0);
}

}  // namespace
}  // namespace lowkey::kvstore
