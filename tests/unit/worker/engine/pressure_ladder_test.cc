#include "worker/engine/pressure_ladder.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "kvstore/page/page_identity.h"
#include "tests/unit/worker/engine/scheduler_loop.h"
#include "tests/unit/worker/engine/shadow_model.h"

namespace lowkey::worker {
namespace {

constexpr int kPageTokens = 16, kLevels = 3;

kernels::PageSpec levelled() {
  kernels::PageSpec spec = kernels::PageSpec::embedded("three levels", 8, 4);
  spec.page_tokens = kPageTokens;
  spec.num_levels = kLevels;
  spec.key.bits.assign(1, {2, 2, 4});
  spec.value.bits = spec.key.bits;
  return spec;
}

kernels::PageLayout layout(const kernels::PageSpec& spec = levelled()) {
  const kernels::CacheShape shape{
      .num_banks = 2, .num_kv_heads = 1, .head_dim = 16, .dtype = kernels::DType::kF32};
  return std::move(kernels::PageLayout::make(spec, shape)).value();
}

struct Fixture {
  explicit Fixture(const kernels::PageSpec& spec = levelled())
      : memory(std::move(kvstore::PageMemory::make(layout(spec), 1 << 20)).value()), pool(*memory) {}

  // A sequence with so many complete pages, and one more that it is at.
  Sequence& add(int pages, int min_levels) {
    Sequence& sequence = *sequences.emplace_back(std::make_unique<Sequence>());
    sequence.min_levels = min_levels;
    for (int i = 0; i <= pages; ++i) sequence.pages.push_back(*pool.allocate(i == 0));
    sequence.computed = pages * kPageTokens + 3;
    return sequence;
  }
  std::vector<Sequence*> holders() {
    std::vector<Sequence*> all;
    for (const auto& sequence : sequences) all.push_back(sequence.get());
    return all;
  }
  static std::vector<int> levels(const Sequence& sequence) {
    std::vector<int> levels;
    for (const kvstore::PageRef& page : sequence.pages) levels.push_back(page.levels());
    return levels;
  }

  std::unique_ptr<kvstore::PageMemory> memory;
  kvstore::PagePool pool;
  std::vector<std::unique_ptr<Sequence>> sequences;
};

TEST(PressureLadder, GivesAllThatReadersAllowAndNothingElse) {
  Fixture f;
  Sequence &coarse = f.add(20, 1), &middle = f.add(10, 2), &fine = f.add(10, 3);
  // Two pages of the first are read by the third as well: they stay as they are.
  Sequence& sharing = f.add(0, 3);
  sharing.pages = {coarse.pages[0], coarse.pages[1]};
  sharing.computed = 2 * kPageTokens;
  PressureLadder ladder(f.pool, true);
  ladder.mark(f.holders());
  const uint64_t used = f.pool.ledger().used, promised = ladder.droppable_bytes();
  EXPECT_GT(promised, 0u);
  while (ladder.drop_in_use()) {
    EXPECT_EQ(used - f.pool.ledger().used + ladder.droppable_bytes(), promised) << "what is left to give";
  }
  std::vector<int> expected(21, 1);
  expected[0] = expected[1] = expected[20] = 3;
  EXPECT_EQ(Fixture::levels(coarse), expected) << "the page it is at will be written whole";
  expected.assign(11, 2);
  expected[10] = 3;
  EXPECT_EQ(Fixture::levels(middle), expected);
  EXPECT_EQ(Fixture::levels(fine), std::vector<int>(11, 3));
  EXPECT_EQ(used - f.pool.ledger().used, promised);
  EXPECT_EQ(ladder.droppable_bytes(), 0u);
  ladder.mark(f.holders());
  EXPECT_FALSE(ladder.drop_in_use()) << "a second look finds nothing more";
}

TEST(PressureLadder, WithoutLevelsItGivesNothing) {
  Fixture f;
  f.add(20, 1);
  PressureLadder ladder(f.pool, false);
  ladder.mark(f.holders());
  EXPECT_FALSE(ladder.drop_in_use());
  EXPECT_EQ(ladder.droppable_bytes(), 0u);
}

TEST(PressureLadder, PagesWhoseLevelsAreOnTheirWayKeepThem) {
  Fixture f;
  Sequence& sequence = f.add(4, 1);
  for (int i = 0; i < 4; ++i) f.pool.set_levels(sequence.pages[i], 2);
  PressureLadder ladder(f.pool, true);
  ladder.mark(f.holders());
  EXPECT_FALSE(ladder.drop_in_use());
}

// What lies far behind everybody goes first, top levels of all before second ones of any, and a superblock
// becomes free each time.
TEST(PressureLadder, TheColdestPagesGoFirstASuperblockAtATime) {
  kernels::PageSpec spec = levelled();  // with slabs of three sizes
  spec.key.bits.assign(1, {4, 1, 2});
  spec.value.bits.assign(1, {4, 4, 0});
  Fixture f(spec);
  Sequence& sequence = f.add(200, 1);
  PressureLadder ladder(f.pool, true);
  const uint32_t per_superblock = f.memory->slabs(2).slabs_per_superblock();
  ASSERT_GT(per_superblock, 1u);
  const auto free_superblocks = [&] { return f.memory->slabs(2).held_superblocks(); };
  const uint32_t held = free_superblocks();
  ladder.mark(f.holders());
  ASSERT_TRUE(ladder.drop_in_use());
  EXPECT_EQ(free_superblocks(), held - 1);
  const auto levels = Fixture::levels(sequence);
  for (size_t i = 0; i < levels.size(); ++i) EXPECT_EQ(levels[i], i < per_superblock ? 2 : 3) << i;
  while (std::ranges::count(Fixture::levels(sequence), 3) > 1) {
    ASSERT_TRUE(ladder.drop_in_use());
    if (std::ranges::count(Fixture::levels(sequence), 3) > static_cast<int>(per_superblock)) {
      EXPECT_EQ(std::ranges::count(Fixture::levels(sequence), 1), 0);
    }
  }
}

// The same load and memory: with the ladder hardly anybody starts over, and all is done in fewer steps.
TEST(SchedulerLadder, FewerGiveWayAndAllEndsSooner) {
  uint64_t preemptions[2] = {};
  int steps[2] = {};
  for (const bool on : {false, true}) {
    Loop loop({.step_tokens = 64, .max_batch = 32, .ladder = on}, layout(), {512 << 10});
    loop.pool().set_pressure({.drop_levels = on});
    for (int i = 0; i < 40; ++i) loop.add(400, 200);
    for (int i = 0; i < 20000 && loop.order().size() < 40; ++i) {
      loop.step();
    }
    EXPECT_EQ(loop.order().size(), 40u);
    preemptions[on] = loop.scheduler().preemptions();
    steps[on] = loop.steps();
    EXPECT_EQ(loop.pool().in_use_level_drops() > 0, on);
  }
  EXPECT_LT(3 * preemptions[1], preemptions[0]);
  EXPECT_LT(3 * steps[1], 2 * steps[0]);
}

// A short answer to a request that asked for no more says nothing about the length of others.
TEST(SchedulerLadder, AShortRequestIsNoReasonToLetMoreIn) {
  uint64_t preemptions[2] = {};
  for (const bool short_one : {false, true}) {
    Loop loop({.step_tokens = 64, .max_batch = 32}, layout(), {512 << 10});
    loop.pool().set_pressure({.drop_levels = true});
    if (short_one) loop.add(10, 1);
    if (short_one) loop.step();
    for (int i = 0; i < 20; ++i) loop.add(100, 500);
    for (int i = 0; i < 20000 && loop.order().size() < 20u + short_one; ++i) loop.step();
    EXPECT_EQ(loop.order().size(), 20u + short_one);
    preemptions[short_one] = loop.scheduler().preemptions();
  }
  EXPECT_EQ(preemptions[1], preemptions[0]);
}

// Short prompts and answers that outgrow the memory they were let in with, ten clients in closed loops: a
// model in small of what tests/bench/tiers.py serves under pressure. With levels to give most of the clients
// decode in the same steps, and what is computed a second time is little beside what that saves.
TEST(SchedulerLadder, LongAnswersShareTheirSteps) {
  constexpr int kClients = 10, kRequests = 40, kPrompt = 64, kAnswer = 960;
  kernels::PageSpec spec = levelled();
  spec.page_tokens = 32;
  const kernels::PageLayout pages =
      std::move(
          kernels::PageLayout::make(
              spec, {.num_banks = 2, .num_kv_heads = 1, .head_dim = 16, .dtype = kernels::DType::kBf16}))
          .value();
  int steps[2] = {};
  for (const bool on : {false, true}) {
    Loop loop({.step_tokens = 512, .max_batch = 64, .ladder = on}, pages, {34 * pages.tail_bytes});
    loop.pool().set_pressure({.drop_levels = on});
    size_t added = 0;
    while (loop.order().size() < kRequests && loop.steps() < 100000) {
      while (added < std::min<size_t>(kRequests, loop.order().size() + kClients)) {
        loop.add(kPrompt, kAnswer);
        ++added;
      }
      loop.step();
    }
    steps[on] = loop.steps();
    const int64_t needed = kRequests * (kPrompt + kAnswer - 1);
    if (on) {
      EXPECT_LT(loop.computed(), needed * 5 / 4);
    }
  }
  EXPECT_LT(2 * steps[1], steps[0]);
}

// What a prompt finds, a level of each page, may lie in every superblock: evicting all else leaves none for
// the slabs of another size.
TEST(SchedulerLadder, WhoseOwnPagesLieInTheWayStartsOver) {
  constexpr uint64_t kPrefix = 5;
  for (const bool room_for_tails : {true, false}) {
    Loop loop({.step_tokens = 64, .max_batch = 8}, layout(), {256 << 10});
    loop.pool().set_pressure({.drop_levels = true});
    kvstore::SlabPool& slabs = loop.pool().memory().slabs(0);
    std::optional<kvstore::TailRef> tail;
    if (room_for_tails) tail = loop.pool().allocate_tail();
    std::vector<kvstore::PageRef> pages{*loop.pool().allocate(true, 1)};
    while (auto page = loop.pool().allocate(false, 1)) pages.push_back(std::move(*page));
    std::set<uint32_t> superblocks;
    Hash128 identity{kPrefix, 0};
    int found = 0;  // tokens
    for (const kvstore::PageRef& page : pages) {
      if (!superblocks.insert(slabs.superblock_of(page.id())).second) continue;
      std::vector<int32_t> tokens(kPageTokens);
      std::iota(tokens.begin(), tokens.end(), found);
      identity = kvstore::chain_hash(identity, tokens);
      loop.pool().publish(page, identity, tokens, found);
      found += kPageTokens;
    }
    pages.clear();
    tail.reset();
    ASSERT_TRUE(loop.pool().memory().fits(found + 8, 40)) << "the request would be refused";
    const uint64_t id = loop.add(found + 8, 40, kPrefix), next = loop.add(100, 4);
    for (int i = 0; i < 1000 && !loop.ended(next); ++i) loop.step();
    EXPECT_TRUE(loop.ended(id));
    EXPECT_TRUE(loop.ended(next)) << "nobody waits for it for good";
    EXPECT_EQ(loop.scheduler().preemptions(), room_for_tails ? 1u : 0u);
  }
}

struct Load {
  int ranks = 1;
  bool store = false;
  bool ladder = true;
  int server_levels = 1;
};
void PrintTo(const Load& load, std::ostream* out) {
  *out << load.ranks << (load.ranks == 1 ? "rank" : "ranks") << (load.store ? "_store" : "")
       << (load.ladder ? "" : "_no_ladder");
  if (load.server_levels > 1) *out << "_levels" << load.server_levels;
}

// Every request has ended with what the pages gave. `coarse`: how many read one below all levels.
void check_answers(EngineReplica& replica, const Shadow& shadow, const std::map<uint64_t, int>& demanded,
                   int* coarse) {
  for (const auto& [id, request] : shadow.requests()) {
    const Answer& answer = replica.answer(id);
    ASSERT_EQ(answer.finish, wire::FINISH_LENGTH) << answer.error;
    ASSERT_EQ(answer.tokens.size(), request.expected.size()) << "request " << id;
    for (const auto& [index, token] : request.expected)
      ASSERT_EQ(answer.tokens[index], token) << "request " << id << ", token " << index;
    const wire::KvReport& report = answer.report();
    if (request.lowest_levels > 0 && report.preemptions() == 0) {
      EXPECT_EQ(report.lowest_levels_read(), static_cast<uint32_t>(request.lowest_levels));
    }
    EXPECT_GE(static_cast<int>(report.lowest_levels_read()), demanded.at(id));
    EXPECT_EQ(report.coarse_tokens(), request.coarse_answers);
    *coarse += request.lowest_levels > 0 && request.lowest_levels < kLevels;
    if (request.coarse_answers > 0 || request.lowest_levels < kLevels) continue;
    EXPECT_EQ(answer.tokens,
              CacheReadingModel::answer(request.prompt, static_cast<int>(answer.tokens.size()), true));
  }
}

class LadderUnderPressure : public ::testing::TestWithParam<Load> {};

// Whatever gives way: every request ends, every token is what the pages gave at the levels they were read at,
// as the report tells them, and no request reads fewer than it demanded.
TEST_P(LadderUnderPressure, EveryTokenIsRightAtTheLevelsThatWereRead) {
  const Load load = GetParam();
  for (unsigned seed = 0; seed < 4; ++seed) {
    std::unique_ptr<EngineReplica> replica;
    Shadow shadow([&](uint64_t id) -> const Answer& { return replica->answer(id); });
    EngineReplicaOptions options;
    options.ranks = load.ranks;
    options.kv_bytes = 72 << 10;
    options.spec = levelled();
    options.engine.scheduler = {.step_tokens = 48, .max_batch = 16, .ladder = load.ladder};
    options.engine.min_levels = load.server_levels;
    options.engine.max_waiting = 1000;
    options.engine.executor.staging_bytes = 256 << 10;
    if (load.store) options.store = std::make_shared<MemoryStore>();
    options.model = [&](int rank, int n) {
      return std::make_unique<ShadowedModel>(rank, n, rank == 0 ? &shadow : nullptr);
    };
    replica = std::make_unique<EngineReplica>(options);

    std::mt19937 random(seed);
    const auto tokens = [&](size_t count) {
      std::vector<int32_t> tokens(count);
      for (int32_t& token : tokens) token = static_cast<int32_t>(random() % CacheReadingModel::kVocab);
      return tokens;
    };
    const std::vector<int32_t> shared[] = {{}, tokens(40), tokens(80)};
    std::map<uint64_t, int> demanded;
    uint64_t next = 1;
    const auto submit = [&] {
      std::vector<int32_t> prompt = shared[random() % 3];
      const auto own = tokens(8 + random() % 90);
      prompt.insert(prompt.end(), own.begin(), own.end());
      wire::Submit request;
      request.set_request_id(next);
      request.mutable_prompt()->Add(prompt.begin(), prompt.end());
      *request.mutable_sampling() = EngineReplica::greedy();
      request.mutable_sampling()->set_max_tokens(1 + random() % 80);
      request.mutable_sampling()->set_ignore_eos(true);
      request.set_min_levels(random() % 3 == 0 ? random() % (kLevels + 1) : 0);
      demanded[next] = std::max<int>({1, load.server_levels, static_cast<int>(request.min_levels())});
      shadow.add(next, prompt);
      ASSERT_TRUE(replica->try_submit(request).ok());
      ++next;
    };
    for (int i = 0; i < 20; ++i) submit();
    for (int i = 0; i < 200; ++i) {
      replica->step();
      if (i % 5 == 0) submit();
    }
    replica->run();
    if (HasFatalFailure()) return;

    int coarse = 0;
    check_answers(*replica, shadow, demanded, &coarse);
    if (::testing::Test::HasFatalFailure()) return;
    const bool drops = load.ladder && load.server_levels < kLevels;
    if (!load.store) {
      EXPECT_EQ(coarse > 0, drops);  // restores come level by level, too
    }
    EXPECT_EQ(replica->metric(0, "lowkey_kv_level_drops_total", "in_use") > 0, drops);
    EXPECT_GT(replica->metric(0, "lowkey_kv_evicted_pages_total"), 0);
    replica->check_all_returned();
  }
}

INSTANTIATE_TEST_SUITE_P(Loads, LadderUnderPressure,
                         testing::Values(Load{}, Load{.ranks = 2}, Load{.store = true},
                                         Load{.ranks = 2, .store = true}, Load{.server_levels = 2},
                                         Load{.server_levels = 3}, Load{.store = true, .ladder = false}),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace lowkey::worker
