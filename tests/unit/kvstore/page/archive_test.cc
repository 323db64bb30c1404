// Archived pages and the room for scores: what the forecast says is what a sequence holds, phase by phase,
// and what fits() promises can be held.
#include <gtest/gtest.h>

#include <random>

#include "base/bytes.h"
#include "kvstore/page/page_pool.h"
#include "kvstore/page/sequence_archive.h"

namespace lowkey::kvstore {
namespace {

constexpr int kBanks = 3, kPageTokens = 16, kBlock = 64;
constexpr int kMaxTokens = 1000;

kernels::PageLayout own_layout() {
  kernels::PageSpec spec;
  spec.page_tokens = kPageTokens;
  const kernels::CacheShape shape{kBanks, 2, 16, kernels::DType::kF32};
  return std::move(kernels::PageLayout::make(spec, shape)).value();
}

// Banks of different widths, two levels, with a sink: everything that a layout may have.
ArchiveSpec archive(BudgetShape shape, double heavy = 0.25, double recent = 0.25) {
  ArchiveSpec spec{.tokens = TokenDial{.heavy = heavy, .recent = recent, .shape = shape},
                   .block_tokens = kBlock};
  for (int bank = 0; bank < kBanks; ++bank) {
    kernels::PageSpec pages = kernels::PageSpec::embedded("codes", 2 << (bank % 2), 4);
    pages.page_tokens = kPageTokens;
    pages.num_levels = 2;
    pages.key.bits.assign(1, {static_cast<uint8_t>(2 << (bank % 2)), 2});
    pages.value = pages.key;
    spec.layouts.push_back(
        std::move(kernels::PageLayout::make(pages, {1, 2, 16, kernels::DType::kF32})).value());
  }
  return spec;
}

struct Fixture {
  explicit Fixture(BudgetShape shape, uint64_t budget = 2 * kMiB)
      : memory(std::move(PageMemory::make(own_layout(), {budget, archive(shape), kMaxTokens})).value()),
        pool(*memory) {}
  std::unique_ptr<PageMemory> memory;
  PagePool pool;

  void expect_ledger(uint64_t used) const {
    const Ledger ledger = pool.ledger();
    EXPECT_EQ(ledger.used, used);
    EXPECT_EQ(ledger.capacity, ledger.used + ledger.evictable + ledger.free + ledger.slack);
    EXPECT_EQ(ledger.capacity, memory->capacity_bytes());
  }
};

class Archive : public ::testing::TestWithParam<BudgetShape> {};

TEST_P(Archive, TheForecastIsWhatASequenceHoldsInEveryPhase) {
  for (const int prompt : {1, 15, 16, 100, 333}) {
    Fixture f(GetParam());
    const ArchiveSpec& spec = *f.memory->archive();
    std::vector<PageRef> pages;
    auto tail = f.pool.allocate_tail();
    SequenceArchive archived(*f.memory);
    std::optional<ScoreSpace> scores = ScoreSpace::allocate(*f.memory, prompt);
    ASSERT_TRUE(tail && scores);
    const uint64_t score_bytes = f.memory->score_bytes(prompt);
    EXPECT_GE(score_bytes, uint64_t(prompt) * kBanks * 2 * 4);
    for (int i = 0; i < prompt / kPageTokens; ++i) pages.push_back(*f.pool.allocate(i == 0));
    ASSERT_TRUE(archived.grow(spec.at_prompt_end(prompt).archived_pages));
    f.expect_ledger(f.memory->peak_bytes(prompt, 0) + score_bytes);

    pages.clear();
    scores.reset();
    const TokenBudget budget = spec.budget(prompt);
    for (int bank = 0; bank < kBanks; ++bank)
      EXPECT_EQ(archived.pages()[bank] * kPageTokens + budget.exact, budget.kept(bank));
    f.expect_ledger(f.memory->resident_bytes(prompt, 0));

    int slots = budget.exact;
    uint64_t most = f.memory->peak_bytes(prompt, 0);
    for (int generated = 1; generated < 200; ++generated) {
      if (++slots % kPageTokens == 0) pages.push_back(*f.pool.allocate(pages.empty()));
      if (slots == kBlock) {
        std::vector<int> more = archived.pages();
        for (int& count : more) count += kBlock / kPageTokens;
        ASSERT_TRUE(archived.grow(more));
        most = std::max(most, f.pool.ledger().used);
        EXPECT_EQ(f.pool.ledger().used, f.memory->bytes(spec.most_after(prompt, generated)));
        pages.clear();
        slots = 0;
      }
      most = std::max(most, f.pool.ledger().used);
      f.expect_ledger(f.memory->resident_bytes(prompt, generated));
      EXPECT_EQ(f.memory->peak_bytes(prompt, generated), most);
    }
    archived = {};
    tail = {};
    pages.clear();
    f.expect_ledger(0);
  }
}

TEST_P(Archive, WhatFitsCanBeHeld) {
  for (const uint64_t budget : {100 * kKiB, 300 * kKiB, 700 * kKiB}) {
    Fixture f(GetParam(), budget);
    EXPECT_LE(f.memory->capacity_bytes(), budget);
    const int most = static_cast<int>(f.memory->max_sequence_tokens());
    EXPECT_GE(most, kPageTokens);
    EXPECT_TRUE(f.memory->fits(most, 0));
    EXPECT_TRUE(f.memory->fits(1, most - 1));
    EXPECT_FALSE(f.memory->fits(100 * most, 0));
    std::vector<PageRef> pages;
    const auto tail = f.pool.allocate_tail();
    ASSERT_TRUE(tail);
    ASSERT_TRUE(ScoreSpace::allocate(*f.memory, most));
    for (int i = 0; i < most / kPageTokens; ++i) {
      auto page = f.pool.allocate(i == 0);
      ASSERT_TRUE(page);
      pages.push_back(*page);
    }
    SequenceArchive archived(*f.memory);
    EXPECT_TRUE(archived.grow(f.memory->archive()->at_prompt_end(most).archived_pages));
  }
}

TEST_P(Archive, GrowthIsAllOrNothing) {
  Fixture f(GetParam(), 200 * kKiB);
  SequenceArchive held(*f.memory);
  ASSERT_TRUE(held.grow(std::vector<int>{1, 2, 1}));
  const uint64_t used = f.pool.ledger().used;
  const std::vector<int> before = held.pages();
  EXPECT_FALSE(held.grow(std::vector<int>{2, 3, 100000}));
  EXPECT_EQ(held.pages(), before);
  f.expect_ledger(used);
  // Ids: levels, then the sink of page 0; from page 1 on the levels alone.
  EXPECT_EQ(held.slabs_from(0, 0).size(), 3u);
  EXPECT_EQ(held.slabs_from(1, 0).size(), 5u);
  EXPECT_EQ(held.slabs_from(1, 1).size(), 2u);
  EXPECT_EQ(held.slabs_from(1, 2).size(), 0u);
  EXPECT_EQ(held.total_pages(), 4u);
}

TEST_P(Archive, ScoresAreBoundedByTheModelAndByTheBudget) {
  Fixture large(GetParam(), 8 * kMiB);
  EXPECT_EQ(large.memory->score_capacity_bytes(), large.memory->score_bytes(kMaxTokens));
  EXPECT_TRUE(ScoreSpace::allocate(*large.memory, kMaxTokens));
  auto first = ScoreSpace::allocate(*large.memory, kMaxTokens / 2 + 100);
  ASSERT_TRUE(first);
  EXPECT_FALSE(ScoreSpace::allocate(*large.memory, kMaxTokens / 2));
  first.reset();
  EXPECT_TRUE(ScoreSpace::allocate(*large.memory, kMaxTokens / 2));
  Fixture small(GetParam(), 200 * kKiB);
  EXPECT_LT(small.memory->score_capacity_bytes(), 200 * kKiB / 20);
  EXPECT_FALSE(small.memory->fits(kMaxTokens, 0));
}

INSTANTIATE_TEST_SUITE_P(Shapes, Archive, ::testing::Values(BudgetShape::kUniform, BudgetShape::kPyramid),
                         [](const auto& shape) {
                           return shape.param == BudgetShape::kUniform ? "uniform" : "pyramid";
                         });

TEST(ArchiveMemory, KeepingAllTokensNeedsNoScores) {
  ArchiveSpec all = archive(BudgetShape::kUniform, 0.5, 0.5);
  const auto memory = std::move(PageMemory::make(own_layout(), {kMiB, all, kMaxTokens})).value();
  EXPECT_EQ(memory->score_bytes(100), 0u);
  all.tokens.reset();
  const auto untouched = std::move(PageMemory::make(own_layout(), {kMiB, all, kMaxTokens})).value();
  EXPECT_EQ(untouched->score_capacity_bytes(), 0u);
  EXPECT_EQ(untouched->archive()->after(100, 0).archived_pages, std::vector<int>(kBanks, 100 / kPageTokens));
}

}  // namespace
}  // namespace lowkey::kvstore
