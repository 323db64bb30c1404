// draw_tokens() against draw_token(), token for token.
#include <random>

#include "tests/parity/backends.h"
#include "tests/parity/device_sequence.h"

namespace lowkey::kernels::test {
namespace {

class DrawParity : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    backend = GetParam().make();
    if (backend == nullptr) GTEST_SKIP() << no_device();
  }

  // Rows of logits as one piece, or as the slices of several ranks, whose padding is poison.
  std::vector<DrawnToken> draw(const std::vector<std::vector<float>>& rows, int parts,
                               const std::vector<TokenDraw>& draws) {
    const int vocab = static_cast<int>(rows[0].size()), cols = (vocab + parts - 1) / parts;
    const int count = static_cast<int>(rows.size());
    std::vector<float> pieces(size_t(parts) * count * cols, std::nanf(""));
    for (int row = 0; row < count; ++row)
      for (int id = 0; id < vocab; ++id)
        pieces[(size_t(id / cols) * count + row) * cols + id % cols] = rows[row][id];
    const GuardedTensor logits(*backend, parts * count, cols, pieces);
    const GuardedBytes tokens(*backend,
                              std::vector<std::byte>(draws.size() * sizeof(DrawnToken), std::byte{0x5a}));
    backend->draw_tokens(logits, parts, vocab, draws, reinterpret_cast<DrawnToken*>(tokens.data()));
    std::vector<DrawnToken> found(draws.size());
    const auto bytes = tokens.read();
    std::memcpy(found.data(), bytes.data(), bytes.size());
    return found;
  }
  void expect_same(const std::vector<std::vector<float>>& rows, int parts,
                   const std::vector<TokenDraw>& draws) {
    const auto found = draw(rows, parts, draws);
    for (size_t i = 0; i < draws.size(); ++i) {
      const TokenDraw& d = draws[i];
      const DrawnToken expected = draw_token(rows[d.row], d);
      EXPECT_EQ(found[i].token, expected.token)
          << "temperature " << d.temperature << ", top_k " << d.top_k << ", top_p " << d.top_p << ", min_p "
          << d.min_p << ", uniform " << d.uniform << ", vocabulary " << rows[0].size();
      if (d.logprob != 0) {
        EXPECT_NEAR(found[i].logprob, expected.logprob, 1e-6 * (1 + std::fabs(expected.logprob)));
      }
    }
  }

  std::unique_ptr<Backend> backend;
};

// Normal logits, ones with many equal ones, ones with a long flat tail, a spike, and forbidden tokens.
std::vector<std::vector<float>> kinds_of_logits(int vocab) {
  std::vector<std::vector<float>> rows = {normal_values(vocab, 1, 4.0f), normal_values(vocab, 2, 0.02f)};
  std::vector<float> ties = normal_values(vocab, 3, 2.0f);
  for (float& x : ties) x = std::round(x);
  for (int i = 0; i < vocab; i += 7) ties[i] = i % 2 == 0 ? 0.0f : -0.0f;
  rows.push_back(ties);
  rows.emplace_back(vocab, -1.25f);
  std::vector<float> spike = normal_values(vocab, 4, 1.0f);
  spike[vocab / 2] = 60.0f;
  rows.push_back(spike);
  std::vector<float> forbidden = normal_values(vocab, 5, 3.0f);
  for (int i = 0; i < vocab; ++i)
    if (i % 3 != 1) forbidden[i] = -INFINITY;
  rows.push_back(forbidden);
  return rows;
}

TEST_P(DrawParity, DrawsWhatTheHostDraws) {
  std::mt19937_64 random(7);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (const auto& [vocab, parts] : {std::pair(2357, 1), {512, 1}, {1001, 3}, {7, 2}, {1, 1}}) {
    const auto rows = kinds_of_logits(vocab);
    std::vector<TokenDraw> draws;
    for (int i = 0; i < 48; ++i) {
      TokenDraw& d = draws.emplace_back();
      d.row = static_cast<int32_t>(i % rows.size());
      d.temperature = std::array{1.0, 0.0, 0.7, 2.5, 0.01}[random() % 5];
      d.top_k = std::array{0, 0, 1, 3, 50, 100000}[random() % 6];
      d.top_p = std::array{1.0, 0.9, 0.5, 0.001, 0.999}[random() % 5];
      d.min_p = std::array{0.0, 0.0, 0.05, 1.0}[random() % 4];
      d.uniform = i % 16 == 0 ? 0 : i % 16 == 1 ? 1 - 0x1p-30 : uniform(random);
      d.logprob = static_cast<int32_t>(random() % 2);
    }
    expect_same(rows, parts, draws);
    if (HasFailure()) return;
  }
}

TEST_P(DrawParity, NamesRowsThatAreNotNumbers) {
  auto rows = kinds_of_logits(100);
  rows.resize(4);
  rows[0][57] = std::nanf("");
  rows[1][99] = -std::nanf("");
  rows[2][3] = INFINITY;
  rows[3].assign(100, -INFINITY);
  std::vector<TokenDraw> draws;
  for (int i = 0; i < 8; ++i) draws.push_back({.row = i % 4, .temperature = i < 4 ? 1.0 : 0.0, .top_p = 0.9});
  for (const DrawnToken& drawn : draw(rows, 1, draws)) EXPECT_EQ(drawn.token, -1);
}

INSTANTIATE_TEST_SUITE_P(Backends, DrawParity, testing::ValuesIn(parity_backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lowkey::kernels::test
