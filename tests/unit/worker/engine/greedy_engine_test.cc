// The engine on a real model in fp32, against an independent float64 reference: whatever happens to a
// sequence on its way, its tokens are those of the reference.
#include <gtest/gtest.h>

#include <random>

#include "tests/unit/worker/engine/engine_replica.h"
#include "tests/unit/worker/engine/stories260k.h"
#include "tests/unit/worker/engine/where.h"

namespace lowkey::worker {
namespace {

using Tokens = std::vector<int32_t>;

struct Case {
  Tokens prompt, expected;
};

class GreedyEngine : public ::testing::TestWithParam<Where> {
 protected:
  void SetUp() override {
    if (!stories_.read())
      GTEST_SKIP() << "stories260K: " << stories_.model.string() << " or its reference is absent";
  }

  EngineReplicaOptions options() const {
    EngineReplicaOptions options;
    options.ranks = ranks();
    options.kv_bytes = (16 << 20) / ranks();
    options.engine.max_waiting = 1000;
    const ModelConfig config = std::move(ModelConfig::read(stories_.model)).value();
    auto backends = std::make_shared<Backends>();
    options.model = [dir = stories_.model, config, backends, device = GetParam().device](int rank, int of) {
      return std::move(Model::load(dir, config, rank, of, backends->add(rank, device))).value();
    };
    options.backend = [backends](int rank) { return backends->latest.at(rank); };
    return options;
  }
  int ranks() const { return GetParam().ranks; }

  // The rest of a reference text, from a prompt that is its first `prompt` tokens.
  Case cut(size_t text, size_t prompt, size_t limit = 1000) const {
    const Tokens& all = stories_.texts[text];
    const size_t end = std::min(all.size(), prompt + limit);
    return {Tokens(all.begin(), all.begin() + prompt), Tokens(all.begin() + prompt, all.begin() + end)};
  }
  uint64_t submit(EngineReplica& replica, const Case& c) const {
    wire::SamplingParams sampling = EngineReplica::greedy();
    sampling.set_ignore_eos(true);  // the references go on after it
    return replica.submit(c.prompt, static_cast<int>(c.expected.size()), sampling);
  }
  void expect_all(EngineReplica& replica, const std::vector<Case>& cases) const {
    std::map<uint64_t, const Case*> requests;
    for (const Case& c : cases) requests[submit(replica, c)] = &c;
    replica.run();
    for (const auto& [id, c] : requests) {
      EXPECT_EQ(replica.answer(id).tokens, c->expected) << "prompt of " << c->prompt.size();
    }
  }
  // Prompts cut anywhere out of the references, short answers.
  std::vector<Case> mixed(int count, unsigned seed) const {
    std::mt19937 random(seed);
    std::vector<Case> cases;
    for (int i = 0; i < count; ++i) {
      const size_t text = random() % stories_.texts.size();
      cases.push_back(cut(text, 1 + random() % (stories_.texts[text].size() - 30), 4 + random() % 24));
    }
    return cases;
  }

  testing::Stories260K stories_;
};

TEST_P(GreedyEngine, WholeTextsAloneAndTogether) {
  EngineReplica replica(options());
  std::vector<Case> cases;
  for (size_t i = 0; i < stories_.texts.size(); ++i) cases.push_back(cut(i, stories_.prompt_sizes[i]));
  expect_all(replica, {cases[2]});
  expect_all(replica, cases);
}

TEST_P(GreedyEngine, ManyMixedSequencesAtEveryBudget) {
  for (const int budget : {1, 7, 64, 512}) {
    EngineReplicaOptions o = options();
    o.engine.scheduler.step_tokens = budget;
    EngineReplica replica(o);
    expect_all(replica, mixed(budget < 7 ? 4 : 24, budget));
    EXPECT_LE(replica.largest_step(), budget);
  }
}

TEST_P(GreedyEngine, UnderForcedPreemption) {
  EngineReplicaOptions o = options();
  o.kv_bytes = (480 << 10) / ranks();  // room for one whole text
  EngineReplica replica(o);
  std::vector<Case> cases;
  for (size_t i = 0; i < 6; ++i) cases.push_back(cut(i % stories_.texts.size(), 20 + 10 * i, 120));
  expect_all(replica, cases);
  EXPECT_GT(replica.metric(0, "lowkey_num_preemptions_total"), 0);
}

TEST_P(GreedyEngine, AfterADevicePrefixHit) {
  EngineReplica replica(options());
  const Case c = cut(0, 200, 40);
  expect_all(replica, {c});
  const uint64_t again = submit(replica, c);
  replica.run();
  EXPECT_EQ(replica.answer(again).cached, 192u);
  EXPECT_EQ(replica.answer(again).tokens, c.expected);
}

TEST_P(GreedyEngine, AfterARestoreFromTheStore) {
  EngineReplicaOptions o = options();
  o.kv_bytes = (480 << 10) / ranks();
  o.store = std::make_shared<MemoryStore>();
  const Case c = cut(0, 200, 40);
  {
    EngineReplica replica(o);
    expect_all(replica, {c});
    expect_all(replica, {cut(2, 200, 1)});  // needs the device for itself
    const uint64_t again = submit(replica, c);
    replica.run();
    EXPECT_GT(replica.answer(again).cached_store, 0u);
    EXPECT_EQ(replica.answer(again).cached, 192u);
    EXPECT_EQ(replica.answer(again).tokens, c.expected);
  }
  EngineReplica fresh(o);  // another process finds them, too
  const uint64_t id = submit(fresh, c);
  fresh.run();
  EXPECT_EQ(fresh.answer(id).cached_store, 192u);
  EXPECT_EQ(fresh.answer(id).tokens, c.expected);
}

// Codes instead of exact pages: not the reference's tokens, but always the same ones.
TEST_P(GreedyEngine, Q8GivesTheSameTokensByEveryWay) {
  EngineReplicaOptions o = options();
  o.spec = kernels::PageSpec::embedded("q8", 8, 4);
  EngineReplica plain(o);
  std::vector<Case> cases{cut(0, 150, 60), cut(2, 150, 60)};
  for (Case& c : cases) {
    const uint64_t id = submit(plain, c);
    plain.run();
    c.expected = plain.answer(id).tokens;
  }
  expect_all(plain, cases);  // prefix hits, together
  o.engine.scheduler.step_tokens = 7;
  o.kv_bytes = (200 << 10) / ranks();
  o.store = std::make_shared<MemoryStore>();
  EngineReplica tight(o);
  expect_all(tight, cases);
  expect_all(tight, {cut(0, 100, 1), cut(2, 90, 1)});
  expect_all(tight, cases);
}

// Three levels of 2, 4 and 8 bits. A restored prefix is read at the first one as long as the others are not
// there, and what was computed meanwhile is not found by anybody.
TEST_P(GreedyEngine, AProgressiveRestoreReadsTheLevelsThatAreThere) {
  EngineReplicaOptions o = options();
  o.spec = kernels::PageSpec::embedded("levels", 8, 4);
  o.spec.num_levels = 3;
  o.spec.key.bits.assign(1, {2, 2, 4});
  o.spec.value.bits = o.spec.key.bits;
  o.store = std::make_shared<MemoryStore>();
  Case c = cut(0, 200, 40);
  {
    EngineReplica writer(o);
    const uint64_t id = submit(writer, c);
    writer.run();
    c.expected = writer.answer(id).tokens;
  }
  std::mutex mutex;
  std::vector<std::function<void()>> held;
  o.hold_restore = [&](int, bool upper, std::function<void()> serve) {
    std::lock_guard lock(mutex);
    if (upper) held.push_back(std::move(serve));
    return upper;
  };
  EngineReplica progressive(o);
  const uint64_t coarse = submit(progressive, c);
  progressive.run_until(coarse);
  EXPECT_EQ(progressive.answer(coarse).cached_store, 192u);
  EXPECT_EQ(progressive.answer(coarse).report().lowest_levels_read(), 1u);
  const auto all_held = [&] {
    std::lock_guard lock(mutex);
    return held.size() >= static_cast<size_t>(ranks());
  };
  const Deadline deadline = Deadline::in(std::chrono::seconds(20));
  while (!all_held() && !deadline.passed()) std::this_thread::yield();
  std::vector<std::function<void()>> late;
  {
    std::lock_guard lock(mutex);
    late.swap(held);
  }
  for (const auto& serve : late) serve();
  while (progressive.step()) {
  }
  o.hold_restore = {};
  EngineReplica whole(o);
  wire::Submit demanding;
  demanding.set_request_id(7);
  demanding.set_min_levels(std::numeric_limits<uint32_t>::max());  // all
  demanding.mutable_prompt()->Add(c.prompt.begin(), c.prompt.end());
  *demanding.mutable_sampling() = EngineReplica::greedy();
  demanding.mutable_sampling()->set_ignore_eos(true);
  demanding.mutable_sampling()->set_max_tokens(40);
  ASSERT_TRUE(whole.try_submit(demanding).ok());
  whole.run();
  EXPECT_EQ(whole.answer(7).cached_store, 192u);
  EXPECT_EQ(whole.answer(7).tokens, c.expected);
  expect_all(whole, {c});
  o.store->forget_levels(1);
  EngineReplica forced(o);
  const uint64_t same = submit(forced, c);
  forced.run();
  EXPECT_EQ(forced.answer(same).tokens, progressive.answer(coarse).tokens);
  EXPECT_EQ(forced.answer(same).report().coarse_tokens(), 40u);
}

INSTANTIATE_TEST_SUITE_P(Tp, GreedyEngine,
                         ::testing::Values(Where{1}, Where{2}, Where{4}, Where{1, true}, Where{2, true}),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace lowkey::worker
