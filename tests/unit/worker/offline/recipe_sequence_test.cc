// A recipe's sequence: with an archive, what is kept and when it moves.
#include "worker/offline/recipe_sequence.h"

#include <gtest/gtest.h>

#include "tests/unit/worker/model/golden.h"
#include "worker/offline/cache_probe.h"

namespace lowkey::testing {
namespace {

using kernels::DType;
using worker::RecipeSequence;
using worker::WindowRunner;
using Rows = std::vector<std::vector<float>>;

class RecipeSequenceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto runner = WindowRunner::load(demo_model(), {.dtype = DType::kF32});
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    runner_ = std::move(*runner);
    for (int i = 0; i < 300; ++i) tokens_.push_back((i * 37 + i * i * 11 + 5) % runner_->config().vocab_size);
  }
  kvstore::ResolvedCache cache(const std::string& yaml) {
    const worker::ModelConfig& config = runner_->config();
    const auto recipe = kvstore::parse_recipe("name: test\n" + yaml, "test");
    EXPECT_TRUE(recipe.ok()) << recipe.error().message;
    auto resolved = kvstore::resolve(*recipe, nullptr,
                                     {.num_layers = config.num_layers,
                                      .num_kv_heads = config.num_kv_heads,
                                      .head_dim = config.head_dim,
                                      .dtype = DType::kF32},
                                     0, 1);
    EXPECT_TRUE(resolved.ok()) << resolved.error().message;
    return *std::move(resolved);
  }
  // Logits behind the prompt; the rest comes in pieces of `piece`.
  Rows run(const kvstore::ResolvedCache& cache, int prompt, int piece) {
    RecipeSequence sequence(*runner_, cache);
    Rows rows;
    const auto sink = [&](int, std::span<const float> row) { rows.emplace_back(row.begin(), row.end()); };
    EXPECT_TRUE(sequence.prompt(std::span(tokens_).first(prompt), prompt, nullptr).ok());
    for (auto left = std::span<const int32_t>(tokens_).subspan(prompt); !left.empty();) {
      const size_t count = std::min<size_t>(piece, left.size());
      EXPECT_TRUE(sequence.extend(left.first(count), 0, sink).ok());
      left = left.subspan(count);
    }
    return rows;
  }

  std::unique_ptr<WindowRunner> runner_;
  std::vector<int32_t> tokens_;
};

constexpr const char* kMiniKv =
    "tokens: {score: h2o, budget: {heavy: 0.25, recent: 0.25}}\n"
    "bits: {quantizer: affine, width: 2, group: 16, key: {axis: channel}, value: {axis: token}}\n"
    "hot: {flush: 128}\n"
    "stream: {prefill: exact}\n";

// An archive that keeps every token at full width is the exact cache.
TEST_F(RecipeSequenceTest, AFullArchiveIsExact) {
  const Rows exact = run(cache(""), 150, 300);
  const Rows archived = run(cache("hot: {flush: 64}\nstream: {prefill: exact}\n"), 150, 300);
  ASSERT_EQ(exact.size(), 150u);
  EXPECT_LT(relative_error(archived, exact), 1e-4);
}

TEST_F(RecipeSequenceTest, HowTheRestIsFedChangesNothing) {
  const kvstore::ResolvedCache minikv = cache(kMiniKv);
  EXPECT_LT(relative_error(run(minikv, 100, 300), run(minikv, 100, 1)), 1e-4);
}

// The least of what both take, which who does not get a core sees only after more rounds: many take more than
// twice as long as few.
template <class Few, class Many>
bool grows(Few few, Many many) {
  double least_few = HUGE_VAL, least_many = HUGE_VAL;
  for (int round = 0; round < 9 || (round < 200 && least_many <= 2 * least_few); ++round) {
    least_few = std::min(least_few, few());
    least_many = std::min(least_many, many());
  }
  return least_many > 2 * least_few;
}

// What a probe times is the whole of what it says, of eight times the tokens.
TEST_F(RecipeSequenceTest, ProbesGrowWithTheCache) {
  const kvstore::ResolvedCache exact = cache(""), minikv = cache(kMiniKv);
  for (const kvstore::ResolvedCache* recipe : {&exact, &minikv}) {
    worker::CacheProbe few(runner_->backend(), *recipe, 4, 2048), many(runner_->backend(), *recipe, 4, 16384);
    EXPECT_TRUE(grows([&] { return few.attend(); }, [&] { return many.attend(); }));
  }
  const auto encode = [&](int tokens) {
    return [&, tokens] { return worker::encode_seconds(exact.pages, tokens, 1); };
  };
  EXPECT_TRUE(grows(encode(128), encode(1024)));
}

}  // namespace
}  // namespace lowkey::testing
