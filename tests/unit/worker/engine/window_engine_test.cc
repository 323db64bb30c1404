// The engine on a model whose every layer has a sliding window: pages behind it are given back, stay findable
// while nobody needs their memory, and what comes back of a prefix is what the next row sees. Tokens are
// those of the same model on caches that keep everything.
#include <gtest/gtest.h>

#include <random>

#include "tests/support/replica.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/worker/engine/engine_replica.h"
#include "worker/model/random_model.h"

namespace lowkey::worker {
namespace {

using Tokens = std::vector<int32_t>;

constexpr int kWindow = 40, kPageTokens = 16;

class WindowEngine : public ::testing::TestWithParam<int> {
 protected:
  static void SetUpTestSuite() {
    folder_ = new testing::TempFolder;
    const auto shape = parse_shape("tiny,family=mistral,window=40,positions=1024");
    ASSERT_TRUE(shape.ok()) << shape.error().message;
    ASSERT_TRUE(write_random_model(*shape, 3, model_dir()).ok());
  }
  static void TearDownTestSuite() { delete std::exchange(folder_, nullptr); }
  static std::filesystem::path model_dir() { return folder_->path() / "m"; }

  // Less than the longest texts take where nothing is given back.
  EngineReplicaOptions options(uint64_t kv_bytes) const {
    EngineReplicaOptions options;
    options.ranks = GetParam();
    options.kv_bytes = kv_bytes / GetParam();
    options.spec.page_tokens = kPageTokens;
    options.engine.scheduler.step_tokens = 24;
    const ModelConfig config = std::move(ModelConfig::read(model_dir())).value();
    EXPECT_EQ(config.widest_window(), kWindow);
    auto backends = std::make_shared<std::vector<std::unique_ptr<kernels::Backend>>>();
    options.model = [config, backends](int rank, int ranks) {
      kernels::Backend& backend =
          *backends->emplace_back(kernels::make_cpu_backend({.dtype = kernels::DType::kF32, .threads = 1}));
      return std::move(Model::load(model_dir(), config, rank, ranks, backend)).value();
    };
    return options;
  }
  static Tokens prompt(int tokens, unsigned seed) {
    std::mt19937 random(seed);
    Tokens prompt(tokens);
    for (int32_t& token : prompt) token = 4 + static_cast<int32_t>(random() % 500);
    return prompt;
  }
  static Tokens expected(const Tokens& prompt, int count) {
    auto replica = testing::Replica::load(model_dir(), {.pages = {.page_tokens = kPageTokens}});
    EXPECT_TRUE(replica.ok()) << replica.error().message;
    return std::move(*replica.value()->greedy(0, prompt, count));
  }

  static testing::TempFolder* folder_;
};

testing::TempFolder* WindowEngine::folder_ = nullptr;

constexpr uint64_t kTight = 120 << 10, kRoomy = 4 << 20;

TEST_P(WindowEngine, LongTextsFitWhereAWindowDoes) {
  EngineReplica replica(options(kTight));
  ASSERT_LT(replica.memory().max_sequence_tokens(), 400u);
  std::vector<std::pair<uint64_t, Tokens>> all;
  for (const auto& [tokens, answer] : {std::pair(300, 200), {7, 160}, {123, 90}, {64, 16}}) {
    const Tokens text = prompt(tokens, tokens);
    all.emplace_back(replica.submit(text, answer), expected(text, answer));
  }
  replica.run();
  for (const auto& [id, tokens] : all) EXPECT_EQ(replica.answer(id).tokens, tokens);
}

// Published pages stay findable after they were given back, by whole prefixes and by those that branch off.
TEST_P(WindowEngine, ReleasedPagesAreFound) {
  EngineReplica replica(options(kRoomy));
  const Tokens text = prompt(200, 1);
  const Tokens first = replica.complete(text, 30);
  EXPECT_EQ(first, expected(text, 30));
  Tokens branch(text.begin(), text.begin() + 100);
  branch.insert(branch.end(), {9, 8, 7});
  for (const auto& [again, cached] : {std::pair(text, 192u), {branch, 96u}}) {
    const uint64_t id = replica.submit(again, 20);
    replica.run();
    EXPECT_EQ(replica.answer(id).cached, cached);
    EXPECT_EQ(replica.answer(id).tokens, expected(again, 20));
  }
}

// Of a prefix of which the front was evicted, the pages inside the window are enough.
TEST_P(WindowEngine, TheEndOfAPrefixIsEnough) {
  EngineReplica replica(options(kTight));
  const Tokens text = prompt(250, 2);
  const uint64_t first = replica.submit(text, 4);
  replica.run();
  EXPECT_EQ(replica.answer(first).tokens, expected(text, 4));
  const uint64_t again = replica.submit(text, 4);
  replica.run();
  EXPECT_EQ(replica.answer(again).cached, 240u) << "15 pages, more than the memory holds";
  EXPECT_EQ(replica.answer(again).tokens, expected(text, 4));
}

TEST_P(WindowEngine, OnlyTheWindowIsRestored) {
  EngineReplicaOptions o = options(kTight);
  o.store = std::make_shared<MemoryStore>();
  const Tokens text = prompt(250, 3);
  {
    EngineReplica writer(o);
    writer.complete(text, 2);
  }
  EngineReplica fresh(o);
  const uint64_t id = fresh.submit(text, 20);
  fresh.run();
  EXPECT_EQ(fresh.answer(id).cached_store, 240u);
  EXPECT_EQ(fresh.answer(id).tokens, expected(text, 20));
  o.store->forget_all();
  EngineReplica alone(o);  // what cannot be restored is computed
  EXPECT_EQ(alone.complete(text, 20), expected(text, 20));
}

INSTANTIATE_TEST_SUITE_P(Ranks, WindowEngine, ::testing::Values(1, 2), ::testing::PrintToStringParamName());

}  // namespace
}  // namespace lowkey::worker
