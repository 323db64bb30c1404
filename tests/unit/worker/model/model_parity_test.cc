// The decoder against Hugging Face transformers (tests/golden/model/make_golden.py), float32.
#include <gtest/gtest.h>

#include "kernels/ops/reference_backend.h"
#include "tests/support/guarded_backend.h"
#include "tests/support/replica.h"
#include "tests/unit/worker/model/golden.h"
#include "worker/model/decoder_weights.h"

namespace lowkey::testing {
namespace {

// Norm: per row max |a - b| / max |b|. Measured 1e-6; the bound is the project's promise.
constexpr double kTolerance = 2e-4;

struct Case {
  const char* name;
  std::vector<int> tp;  // sizes that divide its KV heads
};

class ModelParity : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto expected = read_json(golden_dir() / GetParam().name / "expected.json");
    tokens_ = ids(expected.at("tokens"));
    logits_ = boost::json::value_to<std::vector<std::vector<float>>>(expected.at("logits"));
  }
  std::unique_ptr<Replica> load(ReplicaOptions options) {
    auto replica = Replica::load(golden_dir() / GetParam().name, options);
    EXPECT_TRUE(replica.ok()) << replica.error().message;
    return std::move(*replica);
  }
  std::vector<std::vector<float>> run(Replica& replica, std::span<const int> chunks) {
    std::vector<std::vector<float>> all;
    size_t at = 0;
    for (const int chunk : chunks) {
      auto logits = replica.step(0, std::span(tokens_).subspan(at, chunk));
      EXPECT_TRUE(logits.ok()) << logits.error().message;
      std::ranges::move(*logits, std::back_inserter(all));
      at += chunk;
    }
    replica.forget(0);
    return all;
  }

  std::vector<int32_t> tokens_;
  std::vector<std::vector<float>> logits_;
};

TEST_P(ModelParity, LogitsOfEveryPosition) {
  for (const int tp : GetParam().tp) {
    auto replica = load({.tp = tp});
    const int whole[] = {24};
    EXPECT_LE(relative_error(run(*replica, whole), logits_), kTolerance) << "TP " << tp;
  }
}

// A device whose memory the host cannot touch gives the same bits: nothing goes around the backend.
TEST_P(ModelParity, OnADevice) {
  for (const int tp : GetParam().tp) {
    if (tp > 2) continue;
    ReplicaOptions options{.tp = tp, .pages = {.page_tokens = 16}};
    options.backend = [] { return kernels::make_reference_backend(kernels::DType::kF32); };
    auto plain = load(options);
    options.backend = [] {
      return std::make_unique<GuardedBackend>(kernels::make_reference_backend(kernels::DType::kF32));
    };
    auto device = load(options);
    const int chunks[] = {5, 14, 1, 4};
    EXPECT_EQ(run(*device, chunks), run(*plain, chunks)) << "TP " << tp;
  }
}

// Pages of 16 tokens, so that chunks end inside a page, on its edge, and beyond it.
TEST_P(ModelParity, ChunksOverPages) {
  for (const int tp : GetParam().tp) {
    auto replica = load({.tp = tp, .pages = {.page_tokens = 16}});
    for (const std::vector<int>& chunks : {std::vector{24}, {1, 7, 8, 8}, {5, 14, 1, 4}, {20, 1, 1, 1, 1}})
      EXPECT_LE(relative_error(run(*replica, chunks), logits_), kTolerance) << "TP " << tp;
  }
}

// A bank is stored once, whoever reads it.
TEST(ModelBanks, OnePerOwner) {
  for (const auto& [name, banks] : {std::pair{"llama_cla2", 2}, {"llama_cla3", 2}, {"llama_mlkv", 2}}) {
    const auto config = worker::ModelConfig::read(golden_dir() / name);
    ASSERT_TRUE(config.ok()) << config.error().message;
    EXPECT_EQ(config->num_layers, 4);
    EXPECT_EQ(config->cache_shape(1, kernels::DType::kF32).num_banks, banks) << name;
  }
}

// Rounding weights and activations to bf16 costs about 2^-8 per product; a wrong operation costs about 1.
TEST_P(ModelParity, Bf16StaysNear) {
  auto replica = load({.dtype = kernels::DType::kBf16});
  const int whole[] = {24};
  EXPECT_LE(relative_error(run(*replica, whole), logits_), 0.06);
}

INSTANTIATE_TEST_SUITE_P(Golden, ModelParity,
                         ::testing::Values(Case{"llama_mha", {1, 2, 4, 8}},
                                           Case{"llama_gqa_scaled", {1, 2, 4}}, Case{"llama_mqa", {1}},
                                           Case{"llama_bias", {1, 2, 4}}, Case{"llama_parameters", {1, 2, 4}},
                                           Case{"qwen2", {1, 2}}, Case{"qwen2_sharded", {1, 2, 4}},
                                           Case{"llama_cla2", {1, 2, 4}}, Case{"llama_cla3", {1, 2}},
                                           Case{"llama_mlkv", {1, 2, 4}}),
                         [](const auto& info) { return info.param.name; });

// Rows of one sequence must not see those of another, whatever their order and lengths.
TEST(ModelBatch, SequencesTogetherEqualAlone) {
  auto replica = Replica::load(golden_dir() / "llama_gqa_scaled", {.tp = 2, .pages = {.page_tokens = 16}});
  ASSERT_TRUE(replica.ok()) << replica.error().message;
  const std::vector<int32_t> a = {5, 17, 33, 2, 90, 41, 8, 8, 120, 3, 77, 60, 4, 19, 71, 12, 99, 10, 53},
                             b = {1, 2, 3}, c = {149};
  const std::vector<Rows> step1 = {{0, std::span(a).first(9)}, {1, std::span(b).first(1)}};
  const std::vector<Rows> step2 = {{1, std::span(b).subspan(1)}, {2, c}, {0, std::span(a).subspan(9)}};
  const auto first = replica.value()->step(step1), second = replica.value()->step(step2);
  ASSERT_TRUE(first.ok() && second.ok());
  const auto alone_a = replica.value()->step(3, a), alone_b = replica.value()->step(4, b),
             alone_c = replica.value()->step(5, c);
  ASSERT_TRUE(alone_a.ok() && alone_b.ok() && alone_c.ok());
  const auto rows = [](const auto& x, size_t from, size_t count) {
    return std::vector(x->begin() + from, x->begin() + from + count);
  };
  EXPECT_LE(relative_error(rows(first, 0, 9), rows(alone_a, 0, 9)), 1e-5);
  EXPECT_LE(relative_error(rows(first, 9, 1), rows(alone_b, 0, 1)), 1e-5);
  EXPECT_LE(relative_error(rows(second, 0, 2), rows(alone_b, 1, 2)), 1e-5);
  EXPECT_LE(relative_error(rows(second, 2, 1), rows(alone_c, 0, 1)), 1e-5);
  EXPECT_LE(relative_error(rows(second, 3, 10), rows(alone_a, 9, 10)), 1e-5);
}

TEST(ModelBatch, TokenOutsideTheVocabularyIsRefused) {
  auto replica = Replica::load(golden_dir() / "llama_mqa", {});
  ASSERT_TRUE(replica.ok());
  for (const int32_t token : {-1, 150}) {
    const auto result = replica.value()->step(0, {&token, 1});
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, Code::kInvalidArgument);
  }
}

// 150 rows over 4 ranks: 38, 38, 38, 36 and two of padding, which must never win a sampling.
TEST(ModelShards, PaddedVocabularyIsMinusInfinity) {
  auto backend = kernels::make_cpu_backend({.dtype = kernels::DType::kF32});
  const auto dir = golden_dir() / "llama_bias";
  const auto config = worker::ModelConfig::read(dir);
  ASSERT_TRUE(config.ok());
  auto replica = Replica::load(dir, {.tp = 4});
  ASSERT_TRUE(replica.ok());
  EXPECT_EQ(replica.value()->model(3).vocab_shard(), 38);
  const int32_t token = 7;
  ASSERT_TRUE(replica.value()->step(0, {&token, 1}).ok());
  const auto last = replica.value()->shard_logits(3);
  ASSERT_EQ(last.size(), 38u);
  EXPECT_TRUE(std::isfinite(last[35]));
  EXPECT_EQ(last[36], -INFINITY);
  EXPECT_EQ(last[37], -INFINITY);
}

TEST(ModelShards, RanksHoldTheirPartOnly) {
  const auto dir = demo_model();
  auto whole = Replica::load(dir, {.tp = 1});
  auto halves = Replica::load(dir, {.tp = 2});
  ASSERT_TRUE(whole.ok() && halves.ok());
  const double all = whole.value()->model(0).packed_bytes();
  for (int rank = 0; rank < 2; ++rank)
    EXPECT_NEAR(halves.value()->model(rank).packed_bytes() / all, 0.5, 0.01) << "rank " << rank;
}

// The forecast of `lowkey inspect`, to the byte, where a backend does not pad.
TEST(ModelShards, WeightBytesForecast) {
  const auto backend = kernels::make_reference_backend(kernels::DType::kF32);
  for (const char* name : {"llama_bias", "llama_gqa_scaled", "qwen2_sharded"}) {
    const auto config = worker::ModelConfig::read(golden_dir() / name);
    ASSERT_TRUE(config.ok());
    for (const auto& [rank, size] : {std::pair(0, 1), {0, 4}, {3, 4}}) {
      const auto model = worker::Model::load(golden_dir() / name, *config, rank, size, *backend);
      ASSERT_TRUE(model.ok()) << model.error().message;
      EXPECT_EQ(model.value()->packed_bytes(),
                worker::weight_bytes(*config, rank, size, kernels::DType::kF32))
          << name << " rank " << rank << " of " << size;
    }
  }
}

// The CPU backend pads matrices to the tiles of the instruction set; the project promises memory within 1.1.
TEST(ModelShards, PaddingIsSmall) {
  auto replica = Replica::load(demo_model(), {.tp = 2, .dtype = kernels::DType::kBf16});
  ASSERT_TRUE(replica.ok());
  const worker::Model& model = replica.value()->model(0);
  EXPECT_LE(model.packed_bytes(), 1.05 * worker::weight_bytes(model.config(), 0, 2, kernels::DType::kBf16));
}

TEST(ModelShards, SizeMustDivideKvHeads) {
  auto backend = kernels::make_cpu_backend({.dtype = kernels::DType::kF32});
  const auto config = worker::ModelConfig::read(demo_model());
  ASSERT_TRUE(config.ok());
  const auto model = worker::Model::load(demo_model(), *config, 0, 3, *backend);
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.error().code, Code::kUsage);
  EXPECT_NE(model.error().message.find("3 ranks: expected a divisor of 2 KV heads"), std::string::npos)
      << model.error().message;
}

}  // namespace
}  // namespace lowkey::testing
