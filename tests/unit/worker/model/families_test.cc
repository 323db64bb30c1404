// Every family against Hugging Face transformers (tests/golden/model/make_golden.py): logits of every
// position, and greedy tokens, beyond two pages of 16 tokens and beyond the windows.
#include <gtest/gtest.h>

#include "kernels/ops/reference_backend.h"
#include "tests/support/replica.h"
#include "tests/unit/worker/model/golden.h"
#include "worker/model/decoder_weights.h"

namespace lowkey::testing {
namespace {

constexpr double kTolerance = 2e-4;  // of the row's largest logit, float32
constexpr int kPrompt = 16;          // of the greedy texts

struct FamilyCase {
  const char* name;
  std::vector<int> tp = {1, 2};
};
void PrintTo(const FamilyCase& family, std::ostream* out) {
  *out << family.name;
}

// Of all rows together: a few of random models' attention stand on an edge that any rounding moves.
double rms_error(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  double error = 0, signal = 0;
  for (size_t row = 0; row < b.size(); ++row) {
    for (size_t i = 0; i < b[row].size(); ++i) {
      error += (double{a[row][i]} - b[row][i]) * (double{a[row][i]} - b[row][i]);
      signal += double{b[row][i]} * b[row][i];
    }
  }
  return std::sqrt(error / signal);
}

class Families : public ::testing::TestWithParam<FamilyCase> {
 protected:
  void SetUp() override {
    const auto expected = read_json(golden_dir() / GetParam().name / "expected.json");
    tokens_ = ids(expected.at("tokens"));
    logits_ = boost::json::value_to<std::vector<std::vector<float>>>(expected.at("logits"));
    if (expected.as_object().contains("greedy")) greedy_ = ids(expected.at("greedy"));
  }
  std::unique_ptr<Replica> load(ReplicaOptions options) {
    options.pages.page_tokens = 16;
    auto replica = Replica::load(golden_dir() / GetParam().name, options);
    EXPECT_TRUE(replica.ok()) << replica.error().message;
    return replica.ok() ? std::move(*replica) : nullptr;
  }
  std::vector<std::vector<float>> run(Replica& replica, int chunk) {
    std::vector<std::vector<float>> all;
    for (size_t at = 0; at < tokens_.size(); at += chunk) {
      auto logits =
          replica.step(0, std::span(tokens_).subspan(at, std::min<size_t>(chunk, tokens_.size() - at)));
      EXPECT_TRUE(logits.ok()) << logits.error().message;
      std::ranges::move(*logits, std::back_inserter(all));
    }
    replica.forget(0);
    return all;
  }

  std::vector<int32_t> tokens_, greedy_;
  std::vector<std::vector<float>> logits_;
};

TEST_P(Families, LogitsEqualTransformers) {
  double worst = 0;
  for (const int tp : GetParam().tp) {
    const auto replica = load({.tp = tp});
    ASSERT_NE(replica, nullptr);
    for (const int chunk : {40, 1, 13}) {
      const double error = relative_error(run(*replica, chunk), logits_);
      EXPECT_LE(error, kTolerance) << "TP " << tp << ", chunks of " << chunk;
      worst = std::max(worst, error);
    }
  }
  RecordProperty("worst", std::to_string(worst));
}

// An 8-bit cache costs little, and the same for any TP degree to rounding.
TEST_P(Families, EightBitCacheStaysNear) {
  std::vector<std::vector<std::vector<float>>> results;
  for (const int tp : GetParam().tp) {
    const auto replica = load({.tp = tp, .pages = q8_pages()});
    ASSERT_NE(replica, nullptr);
    results.push_back(run(*replica, 13));
    const double error = rms_error(results.back(), logits_);
    EXPECT_LE(error, 0.05) << "TP " << tp;
    EXPECT_GT(error, kTolerance) << "nothing was encoded";
    RecordProperty("q8", std::to_string(error));
  }
  for (const auto& other : results) EXPECT_LE(relative_error(other, results[0]), 2e-3);
}

TEST_P(Families, Bf16StaysNear) {
  const auto replica = load({.dtype = kernels::DType::kBf16});
  ASSERT_NE(replica, nullptr);
  EXPECT_LE(relative_error(run(*replica, 40), logits_), 0.08);
}

TEST_P(Families, GreedyTokensEqualTransformers) {
  if (greedy_.empty()) GTEST_SKIP() << "transformers' greedy tokens are not in the golden file";
  for (const int tp : GetParam().tp) {
    const auto replica = load({.tp = tp});
    ASSERT_NE(replica, nullptr);
    const auto tokens =
        replica->greedy(0, std::span(tokens_).first(kPrompt), static_cast<int>(greedy_.size()), 5);
    ASSERT_TRUE(tokens.ok()) << tokens.error().message;
    EXPECT_EQ(*tokens, greedy_) << "TP " << tp;
  }
}

TEST_P(Families, WeightBytesForecast) {
  const auto backend = kernels::make_reference_backend(kernels::DType::kF32);
  const auto config = worker::ModelConfig::read(golden_dir() / GetParam().name);
  ASSERT_TRUE(config.ok());
  for (const int tp : GetParam().tp) {
    for (int rank = 0; rank < tp; ++rank) {
      const auto model = worker::Model::load(golden_dir() / GetParam().name, *config, rank, tp, *backend);
      ASSERT_TRUE(model.ok()) << model.error().message;
      EXPECT_EQ(model.value()->packed_bytes(), worker::weight_bytes(*config, rank, tp, kernels::DType::kF32))
          << "rank " << rank << " of " << tp;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Families,
                         ::testing::Values(FamilyCase{"llama_gqa_scaled"}, FamilyCase{"qwen2"},
                                           FamilyCase{"llama_linear"}, FamilyCase{"llama_dynamic"},
                                           FamilyCase{"llama_yarn"}, FamilyCase{"smollm2", {1, 3}},
                                           FamilyCase{"mistral"}, FamilyCase{"qwen2_window"},
                                           FamilyCase{"qwen3"}, FamilyCase{"phi3"}, FamilyCase{"phi3_long"},
                                           FamilyCase{"gemma"}, FamilyCase{"gemma2"}, FamilyCase{"gemma3"},
                                           FamilyCase{"gemma3_parameters"}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lowkey::testing
