// Windows without an engine: what a window yields does not depend on how it is fed.
#include "worker/offline/window_runner.h"

#include <gtest/gtest.h>

#include "tests/support/replica.h"
#include "tests/unit/worker/model/golden.h"

namespace lowkey::testing {
namespace {

using kernels::DType;
using worker::WindowCache;
using worker::WindowRunner;
using Rows = std::vector<std::vector<float>>;

std::vector<int32_t> some_tokens(int count, int vocab) {
  std::vector<int32_t> tokens(count);
  for (int i = 0; i < count; ++i) tokens[i] = (i * 37 + i * i * 11 + 5) % vocab;
  return tokens;
}

class WindowRunnerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = std::filesystem::path(LOWKEY_SOURCE_DIR) / "deploy" / "demo-model";
    auto runner = WindowRunner::load(dir_, {.dtype = DType::kF32});
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    runner_ = std::move(*runner);
    tokens_ = some_tokens(150, runner_->config().vocab_size);
    auto layout = kernels::PageLayout::make(q8_pages(), runner_->config().cache_shape(1, DType::kF32));
    ASSERT_TRUE(layout.ok()) << layout.error().message;
    layout_ = std::move(*layout);
  }
  Rows fed(std::vector<int> pieces, int first_scored) {
    Rows rows;
    WindowCache cache(layout_);
    std::span<const int32_t> left(tokens_);
    for (const int piece : pieces) {
      const auto status = runner_->feed(cache, left.first(piece), first_scored, collect(rows));
      EXPECT_TRUE(status.ok());
      left = left.subspan(piece);
    }
    EXPECT_TRUE(runner_->feed(cache, left, first_scored, collect(rows)).ok());
    return rows;
  }
  static worker::LogitsSink collect(Rows& rows) {
    return [&rows](int, std::span<const float> logits) { rows.emplace_back(logits.begin(), logits.end()); };
  }

  std::filesystem::path dir_;
  std::unique_ptr<WindowRunner> runner_;
  kernels::PageLayout layout_;
  std::vector<int32_t> tokens_;
};

TEST_F(WindowRunnerTest, GivesWhatAReplicaGives) {
  auto replica = Replica::load(dir_, {.dtype = DType::kF32, .pages = q8_pages()});
  ASSERT_TRUE(replica.ok()) << replica.error().message;
  const auto expected = (*replica)->step(0, tokens_);
  ASSERT_TRUE(expected.ok());
  Rows rows;
  std::vector<int> positions;
  ASSERT_TRUE(runner_
                  ->run(tokens_, layout_, 75,
                        [&](int position, std::span<const float> logits) {
                          positions.push_back(position);
                          rows.emplace_back(logits.begin(), logits.end());
                        })
                  .ok());
  ASSERT_EQ(rows.size(), 75u);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(positions[i], static_cast<int>(75 + i));
    EXPECT_EQ(rows[i], expected.value()[75 + i]) << "position " << 75 + i;
  }
}

// One chunked prefill of a window is worth its token by token decode.
TEST_F(WindowRunnerTest, PrefillEqualsDecode) {
  const Rows whole = fed({}, 100);
  const Rows decoded = fed(std::vector<int>(149, 1), 100);
  ASSERT_EQ(whole.size(), 50u);
  ASSERT_EQ(decoded.size(), 50u);
  for (size_t row = 0; row < whole.size(); ++row)
    for (size_t i = 0; i < whole[row].size(); ++i)
      ASSERT_NEAR(whole[row][i], decoded[row][i], 1e-3) << "row " << row << ", token " << i;
}

TEST_F(WindowRunnerTest, TheTapSeesEveryLayerAndRow) {
  std::vector<int> rows(runner_->config().num_layers);
  const worker::AttentionTap tap = [&](int layer, const kernels::Tensor& q, const kernels::Tensor& k,
                                       const kernels::Tensor&) {
    EXPECT_EQ(q.rows, k.rows);
    rows[layer] += q.rows;
  };
  worker::WindowCache cache(layout_);
  ASSERT_TRUE(runner_->feed(cache, tokens_, 0, nullptr, &tap).ok());
  for (const int seen : rows) EXPECT_EQ(seen, 150);
}

TEST_F(WindowRunnerTest, RefusesTokensOutsideTheVocabulary) {
  const std::vector<int32_t> bad = {1, runner_->config().vocab_size};
  const auto status = runner_->run(bad, layout_, 0, nullptr);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, Code::kInvalidArgument);
}

}  // namespace
}  // namespace lowkey::testing
