// The training module end to end on the demo model, and what it makes in the engine's pages.
#include "cli/train_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "kvstore/recipe/resolve.h"
#include "tests/support/random_profile.h"
#include "tests/unit/worker/model/golden.h"
#include "worker/offline/window_runner.h"

namespace lowkey::testing {
namespace {

using kernels::DType;
using kernels::PageLayout;
using kvstore::Budget;
using kvstore::Profile;

TEST(LoadTrainer, SaysInOneLineWhatIsMissing) {
  const auto none = cli::load_trainer("absent/liblowkey_train.so");
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.error().message.find("libtorch"), std::string::npos);
  EXPECT_EQ(none.error().message.find('\n'), std::string::npos);
}

std::vector<std::vector<int32_t>> windows_of(int count, int length, int vocab) {
  std::mt19937 random(5);
  std::vector<std::vector<int32_t>> windows(count);
  for (auto& window : windows) {
    for (int i = 0; i < length; ++i) window.push_back(static_cast<int32_t>(random() % vocab));
    std::copy_n(window.begin(), length / 3, window.begin() + length / 2);  // something to attend to
  }
  return windows;
}

// `groups` pairs (bits, how many groups) for every vector.
Budget uniform(const Profile& profile, const std::vector<uint8_t>& bits) {
  Budget budget{.name = "uniform"};
  for (size_t v = 0; v < profile.vectors.size(); ++v) {
    budget.bits.emplace_back();
    for (uint8_t width : bits) budget.bits.back().push_back({width});
  }
  return budget;
}

class TrainTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto trainer = cli::load_trainer();
    if (!trainer.ok()) GTEST_SKIP() << trainer.error().message;
    trainer_ = std::move(trainer).value();
    auto model = cli::train_model(demo_model());
    ASSERT_TRUE(model.ok()) << model.error().message;
    model_ = std::move(model).value();
    const kvstore::ModelShape shape{.name = "demo",
                                    .num_layers = model_.num_layers,
                                    .num_kv_heads = model_.num_kv_heads,
                                    .head_dim = model_.head_dim};
    initial_ = random_profile(shape);
    windows_ = windows_of(2, 128, model_.vocab_size);
  }
  kvstore::CodedLoss loss(const Profile& profile, const Budget& budget, int sink = 4) {
    auto losses = trainer_->measure(model_, windows_, profile, {&budget, 1}, {.sink_tokens = sink});
    EXPECT_TRUE(losses.ok()) << losses.error().message;
    return losses->front();
  }
  Profile train(kvstore::TrainOptions options) {
    auto trained = trainer_->train(model_, windows_, initial_, options, {});
    EXPECT_TRUE(trained.ok()) << trained.error().message;
    return std::move(trained).value();
  }
  // Pages with these bases and widths, in f32.
  PageLayout pages(const Profile& profile, const Budget& budget, kernels::Quantizer quantizer, int sink) {
    kernels::PageSpec spec{.recipe = "trained", .sink_tokens = sink};
    for (size_t v = 0; v < profile.vectors.size(); ++v) {
      const auto& vector = profile.vectors[v];
      spec.vectors.push_back(
          {.quantizer = quantizer,
           .bits = budget.bits[v],
           .encode = vector.encode,
           .decode = vector.decode,
           .mean = vector.mean,
           .scale = quantizer == kernels::Quantizer::kEmbedded ? vector.scale : std::vector<float>()});
    }
    auto layout = PageLayout::make(spec, {.num_banks = profile.num_banks,
                                          .num_kv_heads = profile.num_kv_heads,
                                          .head_dim = profile.head_dim,
                                          .dtype = DType::kF32});
    EXPECT_TRUE(layout.ok()) << layout.error().message;
    return std::move(layout).value();
  }
  // The engine's own measure of the same.
  double engine_kl(const PageLayout& layout);

  std::unique_ptr<kvstore::Trainer> trainer_;
  kvstore::TrainModel model_;
  Profile initial_;
  std::vector<std::vector<int32_t>> windows_;
};

double TrainTest::engine_kl(const PageLayout& layout) {
  auto runner = worker::WindowRunner::load(demo_model(), {.dtype = DType::kF32});
  EXPECT_TRUE(runner.ok());
  const auto plain = PageLayout::make({}, (*runner)->config().cache_shape(1, DType::kF32));
  double sum = 0;
  int rows = 0;
  for (const auto& window : windows_) {
    std::vector<std::vector<double>> exact;
    const int half = static_cast<int>(window.size()) / 2;
    const auto log_p = [](std::span<const float> logits) {
      double total = 0;
      for (float logit : logits) total += std::exp(double{logit});
      std::vector<double> result;
      for (float logit : logits) result.push_back(logit - std::log(total));
      return result;
    };
    EXPECT_TRUE((*runner)
                    ->run(window, *plain, half,
                          [&](int, std::span<const float> logits) { exact.push_back(log_p(logits)); })
                    .ok());
    EXPECT_TRUE((*runner)
                    ->run(window, layout, half,
                          [&](int position, std::span<const float> logits) {
                            const auto coded = log_p(logits);
                            const auto& truth = exact[position - half];
                            for (size_t i = 0; i < coded.size(); ++i)
                              sum += std::exp(truth[i]) * (truth[i] - coded[i]);
                            ++rows;
                          })
                    .ok());
  }
  return sum / rows;
}

TEST_F(TrainTest, NestedBasesLearnAndStayOrthonormal) {
  const Budget half = uniform(initial_, {255, 255, 0, 0}), all = uniform(initial_, {255, 255, 255, 255});
  const double before = loss(initial_, half, 0).kl;
  const Profile trained = train({.steps = 12, .learning_rate = 1e-2, .sink_tokens = 0, .quantize = false});
  const double after = loss(trained, half, 0).kl;
  EXPECT_LT(after, 0.8 * before);
  EXPECT_EQ(trained.basis, "trained");
  EXPECT_EQ(trained.budgets.size(), initial_.budgets.size());
  const int dim = trained.dim();
  for (size_t v = 0; v < trained.vectors.size(); ++v) {
    const auto& vector = trained.vectors[v];
    EXPECT_NE(vector.encode, initial_.vectors[v].encode) << v;
    EXPECT_NE(vector.mean, initial_.vectors[v].mean) << v;
    for (int i = 0; i < dim; ++i) {
      for (int j = 0; j <= i; ++j) {
        double dot = 0;
        for (int f = 0; f < dim; ++f) dot += double{vector.encode[i * dim + f]} * vector.encode[j * dim + f];
        ASSERT_NEAR(dot, i == j, 1e-5) << v << ' ' << i << ' ' << j;
      }
    }
  }
  // Everything kept: the exact cache, here and in the engine's pages.
  EXPECT_LT(loss(trained, all, 0).kl, 1e-6);
  EXPECT_LT(engine_kl(pages(trained, all, kernels::Quantizer::kFull, 0)), 1e-6);
  // Half kept: training saw what the engine does.
  EXPECT_NEAR(engine_kl(pages(trained, half, kernels::Quantizer::kFull, 0)) / after, 1, 1e-3);
}

TEST_F(TrainTest, CodesAreInTheLoop) {
  const Budget widths = uniform(initial_, {8, 4, 2, 0});
  Budget nothing_of_some = widths;
  for (size_t v = 0; v < initial_.vectors.size(); v += 3) nothing_of_some.bits[v].assign(4, {0});
  initial_.budgets = {widths, nothing_of_some};
  const double before = loss(initial_, widths).kl;
  // The engine's integer kernels round queries and weights too, and random bases leave large errors.
  EXPECT_NEAR(engine_kl(pages(initial_, widths, kernels::Quantizer::kEmbedded, 4)) / before, 1, 0.15);
  const Profile trained = train({.steps = 12, .learning_rate = 1e-2, .quantize = true});
  EXPECT_LT(loss(trained, widths).kl, 0.8 * before);
  for (size_t v = 0; v < trained.vectors.size(); ++v)
    EXPECT_NE(trained.vectors[v].scale, initial_.vectors[v].scale) << v;
}

TEST_F(TrainTest, PairsStayInversesOfEachOther) {
  for (auto& vector : initial_.vectors) {
    const int dim = initial_.dim();
    for (int i = 0; i < dim; ++i) {
      for (int f = 0; f < dim; ++f) {
        vector.encode[i * dim + f] *= 1 + static_cast<float>(f % 5);
        vector.decode[i * dim + f] /= 1 + static_cast<float>(f % 5);
      }
    }
  }
  const Profile trained = train({.steps = 4, .quantize = true});
  EXPECT_LT(loss(trained, uniform(trained, {255, 255, 255, 255})).kl, 1e-6);
}

TEST_F(TrainTest, IsDeterministicAndStopsWhenAsked) {
  const Profile once = train({.steps = 2, .quantize = false}), again = train({.steps = 2, .quantize = false});
  for (size_t v = 0; v < once.vectors.size(); ++v) EXPECT_EQ(once.vectors[v].encode, again.vectors[v].encode);
  int steps = 0;
  ASSERT_TRUE(trainer_
                  ->train(model_, windows_, initial_, {.steps = 50},
                          [&](const kvstore::TrainProgress& at) { return (steps = at.step) < 2; })
                  .ok());
  EXPECT_EQ(steps, 2);
}

TEST_F(TrainTest, RefusesWhatItCannotTrain) {
  const std::vector<std::vector<int32_t>> ragged = {windows_[0], {1, 2, 3}};
  const std::vector<std::vector<int32_t>> tiny = {{1, 2, 3}};
  for (const auto& windows : {ragged, tiny, {}}) {
    const auto refused = trainer_->train(model_, windows, initial_, {.steps = 1}, {});
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, Code::kUsage);
  }
}

}  // namespace
}  // namespace lowkey::testing
