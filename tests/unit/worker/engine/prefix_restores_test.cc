// What is asked of the stores, and in which order: the commands of PrefixRestores, answered by hand.
#include "worker/engine/prefix_restores.h"

#include <gtest/gtest.h>

#include <set>

#include "transport/wire/lowkey.pb.h"

namespace lowkey::worker {
namespace {

using kvstore::kNoSlab;

constexpr int kPageTokens = 16, kLevels = 3;
constexpr size_t kPages = 20;
constexpr double kRate = 1e6;  // bytes per second, no latency

kernels::PageLayout layout() {
  kernels::PageSpec spec = kernels::PageSpec::embedded("three levels", 8, 4);
  spec.page_tokens = kPageTokens;
  spec.num_levels = kLevels;
  spec.key.bits.assign(2, {2, 2, 4});
  spec.value.bits = spec.key.bits;
  return kernels::PageLayout::make(spec, {.num_banks = 4, .num_kv_heads = 2, .head_dim = 32}).value();
}

struct Fixture {
  Fixture() {
    // A step takes much less than a restore, and computing much more.
    for (int i = 0; i < 50; ++i) cost.on_step(0, 1, 1e-4);
    cost.on_step(10, 0, 1);
    cost.on_step(0, 1, 1e-4);
    cost.on_restore(100'000, 100'000 / kRate);
    sequence.id = 1;
    for (size_t i = 0; i < kPages * kPageTokens + 1; ++i) sequence.tokens.push_back(static_cast<int>(i % 91));
    sequence.prompt_tokens = static_cast<int>(sequence.tokens.size());
  }
  ~Fixture() { sequence.release_memory(); }

  // {page in the sequence: levels asked for, as bits}
  std::map<size_t, unsigned> asked() const {
    std::map<size_t, unsigned> pages;
    for (const wire::RestoreCommand& command : sent)
      for (const auto& page : command.pages())
        for (int level = 0; level < kLevels; ++level)
          if (page.slabs(level) != kNoSlab) pages[page.first_token() / kPageTokens] |= 1u << level;
    return pages;
  }
  uint64_t bytes_of(const wire::RestoreCommand& command) const {
    uint64_t bytes = 0;
    for (const auto& page : command.pages())
      for (int level = 0; level < kLevels; ++level)
        if (page.slabs(level) != kNoSlab) bytes += memory->layout().slab_bytes[level];
    return bytes;
  }
  // Answers everything that is out.
  void answer(bool found) {
    for (const wire::RestoreCommand& command : std::exchange(sent, {})) {
      RestoreAnswer answer{.restore_id = command.restore_id()};
      answer.sources.assign(command.pages_size(), found ? '\1' : '\0');
      answer.bytes = found ? bytes_of(command) : 0;
      answer.seconds = static_cast<double>(answer.bytes) / kRate;
      if (!found) answer.reason = "not there";
      ASSERT_TRUE(restores.on_answer(answer).has_value());
    }
  }
  void start() {
    ASSERT_EQ(restores.begin(sequence), Scheduler::Prefix::kFetching);
    answer(true);
    ASSERT_EQ(restores.take_ready().size(), 1u);
    sequence.state = Sequence::State::kRunning;
  }

  std::vector<wire::RestoreCommand> sent;
  CostModel cost;
  std::unique_ptr<kvstore::PageMemory> memory =
      std::move(kvstore::PageMemory::make(layout(), 1 << 20)).value();
  kvstore::PagePool pool{*memory};
  Sequence sequence;
  PrefixRestores restores{{.wait = std::chrono::hours(1), .max_refining = 2},
                          pool,
                          cost,
                          {.send = [this](const wire::RestoreCommand& command) { sent.push_back(command); },
                           .find = [this](uint64_t id) { return id == sequence.id ? &sequence : nullptr; },
                           .queued_tokens = [] { return uint64_t{0}; },
                           .decided = [](const char*) {}}};
};

// The first level of everything takes less than the share of the time that a start may take: what is left
// goes to the first page and to the newest ones.
TEST(PrefixRestores, AProgressiveStartTakesMoreOfThePagesThatMatterMost) {
  Fixture f;
  ASSERT_EQ(f.restores.begin(f.sequence), Scheduler::Prefix::kFetching);
  const auto asked = f.asked();
  ASSERT_EQ(asked.size(), kPages);
  std::set<size_t> sharper;
  uint64_t bytes = 0, all = 0;
  for (const auto& [page, levels] : asked) {
    EXPECT_TRUE(levels == 0b001 || levels == 0b011) << page << ": " << levels;
    if (levels == 0b011) sharper.insert(page);
    for (int level = 0; level < kLevels; ++level) {
      all += f.memory->layout().slab_bytes[level];
      if ((levels >> level & 1) != 0) bytes += f.memory->layout().slab_bytes[level];
    }
  }
  ASSERT_GE(sharper.size(), 2u);
  std::set<size_t> expected{0};
  for (size_t i = 1; i < sharper.size(); ++i) expected.insert(kPages - i);
  EXPECT_EQ(sharper, expected);
  EXPECT_LE(bytes, 2 * all / 5);
  EXPECT_GT(bytes + f.memory->layout().slab_bytes[1], 2 * all / 5) << "time left over";
  f.answer(true);
  ASSERT_EQ(f.restores.take_ready().size(), 1u);
  EXPECT_EQ(f.sequence.pages[0].levels(), 2);
  EXPECT_EQ(f.sequence.pages[1].levels(), 1);
  EXPECT_EQ(f.sequence.pages[kPages - 1].levels(), 2);
}

// A batch is what arrives during a step; the newest pages first, and all of a level before the next one.
TEST(PrefixRestores, RefinementGoesFromTheNewestPageBackwards) {
  Fixture f;
  f.start();
  std::vector<std::pair<int, size_t>> order;  // (level, page)
  for (int step = 0; step < 200; ++step) {
    f.restores.refine();
    if (f.sent.empty()) break;
    EXPECT_LE(f.sent.size(), 2u);
    for (const wire::RestoreCommand& command : f.sent) {
      EXPECT_LE(f.bytes_of(command), std::max<uint64_t>(kRate * 1e-4, f.memory->layout().slab_bytes[2]));
      for (const auto& page : command.pages())
        for (int level = 0; level < kLevels; ++level)
          if (page.slabs(level) != kNoSlab) order.emplace_back(level, page.first_token() / kPageTokens);
    }
    f.answer(true);
  }
  for (const kvstore::PageRef& page : f.sequence.pages) EXPECT_EQ(page.levels(), kLevels);
  ASSERT_FALSE(order.empty());
  for (size_t i = 1; i < order.size(); ++i) {
    const auto& [level, page] = order[i];
    const auto& [level_before, page_before] = order[i - 1];
    if (level != level_before)
      EXPECT_GT(level, level_before);
    else
      EXPECT_TRUE(page < page_before || page_before == 0) << page << " behind " << page_before;
  }
}

// Memory for levels that do not come goes back, so that it can serve others, and the pages can get coarser.
TEST(PrefixRestores, LevelsThatDoNotComeHoldNoMemory) {
  Fixture f;
  f.start();
  const uint64_t before = f.pool.ledger().used;
  f.restores.refine();
  ASSERT_FALSE(f.sent.empty());
  EXPECT_GT(f.pool.ledger().used, before) << "they are to land somewhere";
  f.answer(false);
  EXPECT_EQ(f.pool.ledger().used, before);
  EXPECT_TRUE(f.pool.can_drop_level(f.sequence.pages[kPages - 1].id()));
}

// Two levels of some pages were asked for, and the stores have one.
TEST(PrefixRestores, AStartThatGetsLessHoldsNoMoreMemory) {
  Fixture f;
  ASSERT_EQ(f.restores.begin(f.sequence), Scheduler::Prefix::kFetching);
  f.answer(false);
  ASSERT_TRUE(f.restores.take_ready().empty()) << "what must be is asked for alone";
  for (const auto& [page, levels] : f.asked()) EXPECT_EQ(levels, 0b001u) << page;
  f.answer(true);
  ASSERT_EQ(f.restores.take_ready().size(), 1u);
  EXPECT_EQ(f.sequence.pages.size(), kPages);
  const uint64_t page = kernels::kPageHeaderBytes + f.memory->layout().slab_bytes[0];
  const uint64_t sink = f.memory->layout().slab_bytes[kLevels];
  EXPECT_EQ(f.pool.ledger().used, kPages * page + sink);
}

}  // namespace
}  // namespace lowkey::worker
