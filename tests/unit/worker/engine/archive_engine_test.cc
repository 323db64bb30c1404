// The engine with an archive, on a real model in fp32: a prompt is computed exactly, tokens are chosen once,
// what is kept is encoded, and the tokens that come out are the same by every way.
#include <gtest/gtest.h>

#include <random>

#include "tests/unit/worker/engine/engine_replica.h"
#include "tests/unit/worker/engine/stories260k.h"
#include "tests/unit/worker/engine/where.h"

namespace lowkey::worker {
namespace {

using kvstore::ArchiveSpec;
using kvstore::BudgetShape;
using kvstore::TokenDial;
using Tokens = std::vector<int32_t>;

constexpr int kPageTokens = 16;

// MiniKV's codes: 2 bits, keys per channel and 16 tokens, values per token and 16 channels.
kernels::PageSpec two_bits() {
  kernels::PageSpec spec{.recipe = "minikv", .page_tokens = kPageTokens};
  spec.key.quantizer = spec.value.quantizer = kernels::Quantizer::kAffine;
  spec.key.bits.assign(1, {2});
  spec.value.bits = spec.key.bits;
  spec.key.axis = kernels::ScaleAxis::kChannel;
  spec.value.axis = kernels::ScaleAxis::kToken;
  spec.key.scale_span = spec.value.scale_span = 16;
  return spec;
}

kernels::PageSpec exact() {
  return {.page_tokens = kPageTokens};
}

std::function<ArchiveSpec(const kernels::CacheShape&)> archive(kernels::PageSpec pages,
                                                               std::optional<TokenDial> tokens, int block) {
  return [=](kernels::CacheShape shape) {
    ArchiveSpec spec{.tokens = tokens, .block_tokens = block};
    const int banks = std::exchange(shape.num_banks, 1);
    for (int bank = 0; bank < banks; ++bank)
      spec.layouts.push_back(std::move(kernels::PageLayout::make(pages, shape)).value());
    return spec;
  };
}

struct Case {
  Tokens prompt;
  int max_tokens;
  Tokens expected;
};

class ArchiveEngine : public ::testing::TestWithParam<Where> {
 protected:
  void SetUp() override {
    if (!stories_.read())
      GTEST_SKIP() << "stories260K: " << stories_.model.string() << " or its reference is absent";
  }

  EngineReplicaOptions options(Where where,
                               const std::function<ArchiveSpec(const kernels::CacheShape&)>& archive) const {
    EngineReplicaOptions options;
    options.ranks = where.ranks;
    options.kv_bytes = (16 << 20) / where.ranks;
    options.spec = exact();
    options.archive = archive;
    const ModelConfig config = std::move(ModelConfig::read(stories_.model)).value();
    auto backends = std::make_shared<Backends>();
    options.model = [dir = stories_.model, config, backends, where](int rank, int ranks) {
      return std::move(Model::load(dir, config, rank, ranks, backends->add(rank, where.device))).value();
    };
    options.backend = [backends](int rank) { return backends->latest.at(rank); };
    return options;
  }

  // The first `prompt` tokens of a reference text, and its next ones.
  Case cut(size_t text, int prompt, int max_tokens) const {
    const Tokens& all = stories_.texts[text % stories_.texts.size()];
    const int end = std::min<int>(prompt + max_tokens, static_cast<int>(all.size()));
    return {Tokens(all.begin(), all.begin() + prompt), end - prompt,
            Tokens(all.begin() + prompt, all.begin() + end)};
  }
  std::vector<Case> mixed() const {
    return {cut(0, 150, 60), cut(1, 1, 40), cut(2, 97, 80), cut(0, 16, 90), cut(1, 63, 30), cut(2, 130, 100)};
  }

  static uint64_t submit(EngineReplica& replica, const Case& c) {
    wire::SamplingParams sampling = EngineReplica::greedy();
    sampling.set_ignore_eos(true);
    return replica.submit(c.prompt, c.max_tokens, sampling);
  }
  static void expect_all(EngineReplica& replica, const std::vector<Case>& cases) {
    std::map<uint64_t, const Case*> requests;
    for (const Case& c : cases) requests[submit(replica, c)] = &c;
    replica.run();
    for (const auto& [id, c] : requests)
      EXPECT_EQ(replica.answer(id).tokens, c->expected) << "prompt of " << c->prompt.size();
  }
  // What one rank answers when each is alone.
  std::vector<Case> answered(std::vector<Case> cases, const EngineReplicaOptions& options) const {
    EngineReplica replica(options);
    for (Case& c : cases) {
      const uint64_t id = submit(replica, c);
      replica.run();
      c.expected = replica.answer(id).tokens;
    }
    return cases;
  }

  void expect_same_by_every_way(const std::function<ArchiveSpec(const kernels::CacheShape&)>& archive) {
    const std::vector<Case> cases = answered(mixed(), options({1}, archive));
    for (const int budget : {1, 7, 64, 512}) {
      EngineReplicaOptions o = options(GetParam(), archive);
      o.engine.scheduler.step_tokens = budget;
      EngineReplica replica(o);
      expect_all(replica, budget == 1 ? std::vector<Case>(cases.begin(), cases.begin() + 2) : cases);
      EXPECT_LE(replica.largest_step(), budget);
    }
  }

  // Long answers grow beyond what was forecast for them. A sequence that gave way computes its prompt again,
  // moves the same tokens, and feeds its own tokens again up to the same blocks.
  void expect_same_after_preemption(const std::function<ArchiveSpec(const kernels::CacheShape&)>& archive) {
    const std::vector<Case> cases =
        answered({cut(0, 20, 280), cut(1, 33, 280), cut(2, 41, 280), cut(0, 64, 280)}, options({1}, archive));
    double preemptions = 0, recomputed = 0;
    for (const int kib : {360, 440}) {
      EngineReplicaOptions o = options(GetParam(), archive);
      o.engine.scheduler.step_tokens = 40;
      o.kv_bytes = (kib << 10) / GetParam().ranks;
      EngineReplica tight(o);
      expect_all(tight, cases);
      preemptions += tight.metric(0, "lowkey_num_preemptions_total");
      recomputed += tight.metric(0, "lowkey_recomputed_tokens_total", "preemption");
    }
    EXPECT_GT(preemptions, 0);
    EXPECT_GT(recomputed, 64 * preemptions) << "some of the answers, too";
  }

  testing::Stories260K stories_;
};

TEST_P(ArchiveEngine, KeepingEverythingInFullWidthIsTheReference) {
  for (const std::optional<TokenDial>& tokens :
       {std::optional<TokenDial>(), std::optional<TokenDial>(TokenDial{.heavy = 0.5, .recent = 0.5})}) {
    for (const int block : {kPageTokens, 64}) {
      EngineReplicaOptions o = options(GetParam(), archive(exact(), tokens, block));
      o.engine.scheduler.step_tokens = 48;
      EngineReplica replica(o);
      expect_all(replica, mixed());
      EXPECT_EQ(replica.memory().score_capacity_bytes(), 0u);
    }
  }
}

TEST_P(ArchiveEngine, MiniKv) {
  expect_same_by_every_way(archive(two_bits(), TokenDial{}, 64));
  expect_same_after_preemption(archive(two_bits(), TokenDial{}, 64));
}

TEST_P(ArchiveEngine, MiniKvPyramid) {
  const auto pyramid = archive(two_bits(), TokenDial{.shape = BudgetShape::kPyramid}, 64);
  expect_same_by_every_way(pyramid);
  expect_same_after_preemption(pyramid);
}

TEST_P(ArchiveEngine, OtherScores) {
  for (const auto score : {kvstore::TokenScore::kWindowSum, kvstore::TokenScore::kKeyNorm}) {
    const auto other = archive(two_bits(), TokenDial{.score = score}, kPageTokens);
    const std::vector<Case> cases = answered(mixed(), options({1}, other));
    EngineReplicaOptions o = options(GetParam(), other);
    o.engine.scheduler.step_tokens = 23;
    EngineReplica replica(o);
    expect_all(replica, cases);
  }
}

INSTANTIATE_TEST_SUITE_P(Tp, ArchiveEngine,
                         ::testing::Values(Where{1}, Where{2}, Where{4}, Where{1, true}, Where{2, true}),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace lowkey::worker
