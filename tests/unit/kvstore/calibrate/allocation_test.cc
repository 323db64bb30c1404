#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "kvstore/calibrate/build_profile.h"

namespace lowkey::kvstore {
namespace {

SampleRows normal_rows(int rows, int dim, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  SampleRows out(rows, dim);
  for (float& value : out.reshaped()) value = normal(random);
  return out;
}

TEST(FeatureCoder, ScalesGiveUnitMeanSquareUnderTheNorm) {
  SampleRows rows = normal_rows(2000, 64, 1);
  for (int f = 0; f < 64; ++f) rows.col(f) *= std::pow(0.93f, static_cast<float>(f));
  const auto plain = fit_scales(rows, false, 4.5f);
  for (int f = 0; f < 64; ++f) EXPECT_NEAR(plain[f], std::sqrt(rows.col(f).array().square().mean()), 1e-5f);
  // Rows of unequal length: the norm takes that away, and the scales say the rest.
  SampleRows uneven = rows;
  for (int i = 0; i < uneven.rows(); ++i) uneven.row(i) *= i % 2 ? 5.0f : 0.2f;
  const auto even_scale = fit_scales(rows, true, 4.5f), uneven_scale = fit_scales(uneven, true, 4.5f);
  for (int f = 1; f < 64; ++f)
    EXPECT_NEAR(uneven_scale[f] / uneven_scale[0], even_scale[f] / even_scale[0],
                0.02f * even_scale[f] / even_scale[0]);
}

TEST(FeatureCoder, CodesLoseWhatTheyLoseOnANormalDensity) {
  const SampleRows rows = 3.0f * normal_rows(4000, 32, 2);
  const auto errors = code_errors(rows, fit_scales(rows, false, 4.5f), false, 4.5f);
  ASSERT_EQ(errors.size(), 2u);
  const double decibels[] = {0, 9.2, 20.2, 42.5};
  for (const auto& group : errors)
    for (size_t w = 0; w < kWidths.size(); ++w)
      EXPECT_NEAR(10 * std::log10(16 * 9.0 / group[w]), decibels[w], 0.25) << kWidths[w];
}

TEST(Loss, MoreBitsNeverLoseMore) {
  const std::array<double, 4> errors{16, 2, 0.16, 0.001};
  const GroupLoss loss = interpolate_loss(0.1, 0.01, errors);
  EXPECT_DOUBLE_EQ(loss[0], 0.1);
  EXPECT_DOUBLE_EQ(loss[1], 0.01);
  EXPECT_DOUBLE_EQ(loss[2], 0.01 * 0.16 / 2);
  EXPECT_DOUBLE_EQ(loss[3], 0.01 * 0.001 / 2);
  const GroupLoss noise = interpolate_loss(-1e-5, 2e-5, errors);  // measured below nothing
  for (size_t w = 1; w < noise.size(); ++w) EXPECT_LE(noise[w], noise[w - 1]);
  EXPECT_GT(noise[0], 0);
}

struct Small {
  kernels::CacheShape shape{.num_banks = 2, .num_kv_heads = 1, .head_dim = 32};
  kernels::PageSpec frame{.sink_tokens = 4};
  LossTable losses;
  Small() {
    frame.key.quantizer = kernels::Quantizer::kEmbedded;
    std::mt19937 random(3);
    for (int v = 0; v < 4; ++v) {
      auto& vector = losses.emplace_back();
      for (int g = 0; g < 2; ++g) {
        const double size = std::exp(std::uniform_real_distribution<>(-8, 0)(random));
        vector.push_back({size, size * 0.12, size * 0.0095, size * 0.0001});
      }
    }
  }
  double loss_of(const std::vector<std::vector<GroupBits>>& bits) const {
    double sum = 0;
    for (size_t v = 0; v < bits.size(); ++v)
      for (size_t g = 0; g < bits[v].size(); ++g)
        sum += losses[v][g][std::ranges::find(kWidths, bits[v][g][0]) - kWidths.begin()];
    return sum;
  }
  kernels::PageLayout layout(const Budget& budget) const {
    auto made = kernels::PageLayout::make(spec_of_bits(budget, frame), shape);
    EXPECT_TRUE(made.ok()) << made.error().message;
    return *made;
  }
  double ratio(const Budget& budget) const {
    const auto made = layout(budget);
    return static_cast<double>(made.bf16_bytes_for_tokens(kBudgetTokens)) /
           static_cast<double>(made.bytes_for_tokens(kBudgetTokens));
  }
};

TEST(Planes, FitTheBudgetAndLoseLittleMoreThanTheBestOfAll) {
  const Small small;
  for (double ratio : {3.0, 4.0, 5.0}) {
    const auto budget = allocate_planes(small.losses, {&ratio, 1}, small.frame, small.shape);
    ASSERT_TRUE(budget.ok()) << budget.error().message;
    EXPECT_GE(small.ratio(*budget), ratio);
    // All 4^8 allocations; bytes follow the sum of the bits.
    const auto bits_of = [](const Budget& b) {
      int sum = 0;
      for (const auto& vector : b.bits)
        for (const GroupBits& group : vector) sum += group[0];
      return sum;
    };
    int most = 0;  // bits that fit
    for (int bits = bits_of(*budget);; ++bits) {
      Budget probe{.bits = {4, std::vector<GroupBits>(2, GroupBits{0})}};
      int left = bits;
      for (auto& vector : probe.bits)
        for (GroupBits& group : vector) {
          group[0] = static_cast<uint8_t>(std::min(left, 8) / 2 * 2);
          left -= group[0];
        }
      if (small.ratio(probe) < ratio) break;
      most = bits;
    }
    double best = 1e9;
    for (int code = 0; code < 1 << 16; ++code) {
      std::vector<std::vector<GroupBits>> bits(4, std::vector<GroupBits>(2));
      int sum = 0;
      for (int i = 0; i < 8; ++i) {
        bits[i / 2][i % 2] = {static_cast<uint8_t>(kWidths[(code >> (2 * i)) & 3])};
        sum += bits[i / 2][i % 2][0];
      }
      if (sum <= most) best = std::min(best, small.loss_of(bits));
    }
    EXPECT_LE(small.loss_of(budget->bits), 1.3 * best) << ratio;
    EXPECT_GE(bits_of(*budget), most - 3) << "bits left over";
  }
}

Result<Budget> allocate(const Small& small, const std::vector<double>& ratios) {
  return allocate_planes(small.losses, ratios, small.frame, small.shape);
}

TEST(Planes, NamesAndImpossibleBudgets) {
  const Small small;
  EXPECT_EQ(allocate(small, {4})->name, "4x");
  EXPECT_EQ(allocate(small, {4.5})->name, "4.5x");
  for (const auto& ratios : {std::vector<double>{40}, {3, 4}, {3, 3}}) {
    const auto refused = allocate(small, ratios);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, Code::kUsage);
  }
}

// Every level fits its own ratio, only adds, and adds what can be read fast; the first is what it is alone.
TEST(Planes, LevelsGrowFromTheOneBelow) {
  const Small small;
  const auto levels = allocate(small, {5, 3.4, 2.2});
  ASSERT_TRUE(levels.ok()) << levels.error().message;
  EXPECT_EQ(levels->name, "5x-3.4x-2.2x");
  EXPECT_EQ(levels->levels, 3);
  const auto layout = small.layout(*levels);
  EXPECT_EQ(layout.num_levels, 3);
  const double bf16 = static_cast<double>(layout.bf16_bytes_for_tokens(kBudgetTokens));
  int n = 0;
  for (const double ratio : {5.0, 3.4, 2.2}) {
    const double found = bf16 / static_cast<double>(layout.bytes_for_tokens(kBudgetTokens, ++n));
    EXPECT_GE(found, ratio);
    EXPECT_LT(found, 1.15 * ratio) << "bits left over";
  }
  const auto alone = allocate(small, {5});
  double before = 1e9;
  for (int level = 1; level <= 3; ++level) {
    auto first = levels->bits;
    for (size_t v = 0; v < first.size(); ++v)
      for (size_t g = 0; g < first[v].size(); ++g) {
        const GroupBits bits = levels->bits[v][g];
        if (level == 1) EXPECT_EQ(bits[0], alone->bits[v][g][0]);
        int sum = 0;
        for (int i = 0; i < level; ++i) {
          EXPECT_TRUE(sum == 0 || bits[i] <= sum) << "no fast kernel for " << sum << " and " << int{bits[i]};
          sum += bits[i];
        }
        EXPECT_NE(std::ranges::find(kWidths, sum), kWidths.end()) << sum;
        first[v][g] = {static_cast<uint8_t>(sum)};
      }
    EXPECT_LT(small.loss_of(first), before);
    before = small.loss_of(first);
  }
}

TEST(Ranks, TheCheapestGroupGoesFirst) {
  // losses[vector][groups kept]
  const std::vector<std::vector<double>> losses = {{9, 5, 0.1, 0}, {9, 0.3, 0.2, 0}, {1, 0.02, 0.01, 0}};
  const RankChoice all{{3, 3, 3}};
  const auto two_thirds = allocate_ranks(losses, all, 6.0 / 9);
  EXPECT_EQ(two_thirds.groups, (std::vector<int>{2, 3, 1}));
  const auto less = allocate_ranks(losses, two_thirds, 4.0 / 9);
  EXPECT_EQ(less.groups, (std::vector<int>{2, 1, 1}));
  const Budget budget = budget_of_ranks("keep-0.44", less, 3);
  EXPECT_EQ(budget.bits[0][1][0], kernels::kFullBits);
  EXPECT_EQ(budget.bits[0][2][0], 0);
}

TEST(Specs, RanksAndCodesAreTheProfilesFirstFeatures) {
  Profile profile{.head_dim = 32};
  const SampleRows rows = normal_rows(500, 32, 5);
  Eigen::MatrixXd rotation = Eigen::MatrixXd::Identity(32, 32).rowwise().reverse();
  const VectorProfile vector = make_vector_profile({rotation, rotation, Eigen::VectorXd::Constant(32, 0.5)},
                                                   rows, profile.norm, profile.norm_edge);
  const auto ranked = ranked_spec(vector, 1);
  EXPECT_EQ(ranked.encode.size(), 16u * 32);
  EXPECT_EQ(ranked.encode[31], 1.0f);
  EXPECT_EQ(ranked.bits, std::vector<GroupBits>{GroupBits{kernels::kFullBits}});
  const std::vector<GroupBits> bits = {GroupBits{4}, GroupBits{0}};
  const auto coded = embedded_spec(profile, vector, bits);
  EXPECT_EQ(coded.bits.size(), 1u);  // what has no bits is not stored
  EXPECT_EQ(coded.scale.size(), 16u);
  EXPECT_EQ(coded.mean.size(), 32u);
}

}  // namespace
}  // namespace lowkey::kvstore
