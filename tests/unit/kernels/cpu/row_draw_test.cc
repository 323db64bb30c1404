// The quick draw against draw_token(), token for token, on every instruction set.
#include "kernels/cpu/row_draw.h"

#include <set>

#include "tests/unit/kernels/support.h"

namespace lowkey::kernels::test {
namespace {

std::vector<float> normal_logits(size_t size, unsigned seed, float spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(size);
  for (float& x : logits) x = normal(random);
  return logits;
}

// Peaked and flat, with ties, all equal, with forbidden ones at the end and everywhere, and one spike.
std::vector<std::vector<float>> rows_of(size_t vocab) {
  std::vector<std::vector<float>> rows{normal_logits(vocab, 1, 4), normal_logits(vocab, 2, 0.02f),
                                       normal_logits(vocab, 3, 2), std::vector<float>(vocab, -1.25f),
                                       normal_logits(vocab, 4, 3), normal_logits(vocab, 5, 1)};
  for (float& x : rows[2]) x = std::round(x);
  for (size_t i = 0; i < vocab; i += 7) rows[2][i] = i % 2 == 0 ? 0.0f : -0.0f;
  for (size_t i = 0; i < vocab; ++i)
    if (i % 3 != 1 || i > vocab / 2 + 1) rows[4][i] = i == 0 ? -5 : -INFINITY;
  rows[5][vocab / 2] = 60;
  return rows;
}

void expect_same(RowDraw& quick, const std::vector<float>& logits, const TokenDraw& draw) {
  const DrawnToken expected = draw_token(logits, draw), found = quick.draw(logits, draw);
  ASSERT_EQ(found.token, expected.token)
      << "temperature " << draw.temperature << ", top_k " << draw.top_k << ", top_p " << draw.top_p
      << ", min_p " << draw.min_p << ", uniform " << draw.uniform << ", vocabulary " << logits.size();
  if (draw.logprob != 0) {
    EXPECT_NEAR(found.logprob, expected.logprob, 1e-6 * (1 + std::fabs(expected.logprob)));
  }
}

class RowDraws : public testing::TestWithParam<BackendCase> {
  SimdTarget target_{GetParam().simd_target};
};

TEST_P(RowDraws, AreThePlainOnes) {
  std::mt19937_64 random(11);
  std::uniform_real_distribution<double> uniform(0, 1);
  RowDraw quick;
  for (const size_t vocab : {1, 2, 15, 513, 2357, 20011}) {
    for (const auto& logits : rows_of(vocab)) {
      for (int i = 0; i < (vocab > 10000 ? 16 : 60); ++i) {
        TokenDraw draw;
        draw.temperature = std::array{1.0, 0.0, 0.7, 2.5, 0.01}[random() % 5];
        draw.top_k = std::array{0, 0, 1, 3, 50, 400, 100000}[random() % 7];
        draw.top_p = std::array{1.0, 1.0, 0.9, 0.5, 0.001, 0.999, 1 - 0x1p-53}[random() % 7];
        draw.min_p = std::array{0.0, 0.0, 0.05, 1.0}[random() % 4];
        draw.uniform = i % 8 == 0 ? 0 : i % 8 == 1 ? 1 - 0x1p-30 : uniform(random);
        draw.logprob = static_cast<int32_t>(random() % 2);
        ASSERT_NO_FATAL_FAILURE(expect_same(quick, logits, draw));
      }
    }
  }
}

// Many draws of one row hit every part of it, in the proportions of the plain ones because they are the same.
TEST_P(RowDraws, GoThroughTheWholeVocabulary) {
  const auto logits = normal_logits(3000, 6, 0.5f);
  RowDraw quick;
  std::set<int32_t> different;
  for (int i = 0; i < 4000; ++i) {
    const TokenDraw draw{.top_p = i % 2 == 0 ? 1 : 0.97, .uniform = (i + 0.5) / 4000};
    different.insert(quick.draw(logits, draw).token);
    if (i % 16 < 2) {
      ASSERT_NO_FATAL_FAILURE(expect_same(quick, logits, draw));
    }
  }
  EXPECT_GT(different.size(), 1000u);
}

TEST_P(RowDraws, NameRowsThatAreNotNumbers) {
  RowDraw quick;
  for (size_t size : {1, 7, 40}) {
    for (size_t at = 0; at < size; ++at) {
      for (const float bad : {NAN, -NAN, INFINITY}) {
        std::vector<float> logits(size, 1.0f);
        logits[at] = bad;
        EXPECT_EQ(quick.draw(logits, {}).token, -1);
        EXPECT_EQ(quick.draw(logits, {.temperature = 0}).token, -1);
      }
    }
    EXPECT_EQ(quick.draw(std::vector<float>(size, -INFINITY), {}).token, -1);
  }
  EXPECT_EQ(quick.draw(std::span<const float>(), {}).token, -1);
}

// Rows of several ranks' pieces, over threads.
TEST(RowDraw, BackendDrawsRowsOfPieces) {
  constexpr int kVocab = 1001, kParts = 3, kCols = 334;
  const auto rows = rows_of(kVocab);
  const int count = static_cast<int>(rows.size());
  std::vector<float> pieces(size_t(kParts) * count * kCols, NAN);
  for (int row = 0; row < count; ++row)
    for (int id = 0; id < kVocab; ++id)
      pieces[(size_t(id / kCols) * count + row) * kCols + id % kCols] = rows[row][id];
  const auto backend = make_cpu_backend({.threads = 3});
  std::vector<TokenDraw> draws;
  for (int i = 0; i < 5 * count; ++i)
    draws.push_back({.row = i % count,
                     .top_k = i % 4 == 0 ? 7 : 0,
                     .top_p = i % 3 == 0 ? 0.8 : 1,
                     .uniform = i / (5.0 * count)});
  std::vector<DrawnToken> found(draws.size());
  backend->draw_tokens({pieces.data(), kParts * count, kCols}, kParts, kVocab, draws, found.data());
  for (size_t i = 0; i < draws.size(); ++i)
    EXPECT_EQ(found[i].token, draw_token(rows[draws[i].row], draws[i]).token) << i;
}

INSTANTIATE_TEST_SUITE_P(Targets, RowDraws, testing::ValuesIn(simd_backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lowkey::kernels::test
