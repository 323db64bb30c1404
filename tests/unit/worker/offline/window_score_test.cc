#include "worker/offline/window_score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace lowkey::testing {
namespace {

using worker::ExactAnswers;
using worker::QualityScore;

// Logits of a distribution, moved by a constant that must not matter.
std::vector<float> logits_of(const std::vector<double>& probabilities, double shift) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + shift));
  return logits;
}

TEST(QualityScore, IsTheFormula) {
  ExactAnswers exact(3);
  exact.add(logits_of({0.5, 0.25, 0.25}, 7));
  exact.add(logits_of({0.1, 0.8, 0.1}, -3));
  QualityScore score;
  score.add(logits_of({0.25, 0.5, 0.25}, 2), exact, 0, 2);
  score.add(logits_of({0.1, 0.8, 0.1}, 0), exact, 1, 1);
  const double kl = 0.5 * std::log(2.0) + 0.25 * std::log(0.5);
  EXPECT_NEAR(score.kl(), kl / 2, 1e-6);
  EXPECT_EQ(score.top1(), 0.5);
  EXPECT_NEAR(score.perplexity(), 1 / std::sqrt(0.25 * 0.8), 1e-5);
  EXPECT_NEAR(score.exact_perplexity(), 1 / std::sqrt(0.25 * 0.8), 1e-5);
  EXPECT_EQ(score.positions(), 2);
}

TEST(QualityScore, LargeLogitsAndPaddingDoNotOverflow) {
  ExactAnswers exact(3);
  const std::vector<float> logits = {1e4f, 1e4f - 1, -1e4f};
  exact.add(logits);
  QualityScore score;
  score.add(logits, exact, 0, 0);
  EXPECT_EQ(score.kl(), 0);
  EXPECT_NEAR(score.perplexity(), 1 + std::exp(-1), 1e-5);
}

}  // namespace
}  // namespace lowkey::testing
