#include "worker/engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "transport/wire/lowkey.pb.h"

namespace lowkey::worker {
namespace {

// The distribution that sample() must follow, in float64 and straight from the definition: softmax(logits /
// T), keep the top k, renormalise, keep the smallest set of the most likely with at least top_p mass,
// renormalise.
std::vector<double> reference(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> p(logits.size());
  for (size_t i = 0; i < p.size(); ++i)
    p[i] = std::exp((double{logits[i]} - logits[order[0]]) / params.temperature);
  const auto normalise = [&](size_t keep) {
    double sum = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      if (i >= keep) p[order[i]] = 0;
      sum += p[order[i]];
    }
    for (double& x : p) x /= sum;
  };
  normalise(params.top_k > 0 ? params.top_k : p.size());
  size_t keep = 0;
  for (double sum = 0; keep < p.size() && sum < params.top_p; ++keep) sum += p[order[keep]];
  normalise(keep);
  return p;
}

std::vector<float> random_logits(int size, unsigned seed, double spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(size);
  for (float& x : logits) x = normal(random);
  return logits;
}

int32_t token(const std::vector<float>& logits, const SamplingParams& params, uint64_t position) {
  return sample(logits, params, position)->token;
}

TEST(Sampler, FollowsTheReferenceDistribution) {
  const std::vector<SamplingParams> settings{{.temperature = 1},
                                             {.temperature = 0.5},
                                             {.temperature = 1.7, .top_k = 5},
                                             {.temperature = 1, .top_p = 0.8},
                                             {.temperature = 0.7, .top_p = 0.9, .top_k = 12},
                                             {.temperature = 3, .top_p = 0.999}};
  constexpr int kDraws = 40000;
  for (size_t s = 0; s < settings.size(); ++s) {
    SamplingParams params = settings[s];
    params.seed = 1000 + s;
    const auto logits = random_logits(30, s, 2);
    const auto expected = reference(logits, params);
    std::vector<int> counts(logits.size());
    for (int i = 0; i < kDraws; ++i) ++counts[token(logits, params, i)];
    double chi = 0;
    int degrees = -1;
    for (size_t i = 0; i < counts.size(); ++i) {
      if (expected[i] == 0) {
        EXPECT_EQ(counts[i], 0) << "token " << i << " was filtered out, setting " << s;
        continue;
      }
      const double mean = expected[i] * kDraws;
      if (mean < 5) continue;
      chi += (counts[i] - mean) * (counts[i] - mean) / mean;
      ++degrees;
    }
    // Mean d, variance 2 d: five standard deviations, with the seed fixed.
    EXPECT_LT(chi, degrees + 5 * std::sqrt(2.0 * degrees)) << "setting " << s;
  }
}

// A nucleus larger than the first sorted part of a big vocabulary.
TEST(Sampler, WideNucleusOfABigVocabulary) {
  const auto logits = random_logits(20000, 3, 0.3);
  const SamplingParams params{.temperature = 1, .top_p = 0.7, .seed = 5};
  const auto expected = reference(logits, params);
  const double kept = std::ranges::count_if(expected, [](double p) { return p > 0; });
  ASSERT_GT(kept, 2500);
  double mean = 0, expected_mean = 0;
  for (int i = 0; i < 500; ++i) {
    const int32_t drawn = token(logits, params, i);
    ASSERT_GT(expected[drawn], 0);
    mean += logits[drawn] / 500;
  }
  for (size_t i = 0; i < expected.size(); ++i) expected_mean += expected[i] * logits[i];
  EXPECT_NEAR(mean, expected_mean, 5 * 0.3 / std::sqrt(500.0));
}

TEST(Sampler, ExactCases) {
  const std::vector<float> logits{1, 5, 5, 2};
  EXPECT_EQ(token(logits, {.temperature = 0}, 0), 1) << "the lowest id wins a tie";
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(token(logits, {.temperature = 1, .top_k = 1}, i), 1);
    EXPECT_EQ(token(logits, {.temperature = 1, .top_p = 0.3}, i), 1);
    EXPECT_EQ(token({0, 10, -10}, {.temperature = 1e-6}, i), 1) << "almost greedy";
  }
  const float none = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < 200; ++i) EXPECT_NE(token({none, 1, none, 1}, {.temperature = 5}, i) % 2, 0);
}

TEST(Sampler, DependsOnSeedAndPositionOnly) {
  const auto logits = random_logits(50, 1, 1);
  int different = 0;
  for (int position = 0; position < 100; ++position) {
    const SamplingParams a{.seed = 1}, b{.seed = 2};
    EXPECT_EQ(token(logits, a, position), token(logits, a, position));
    different += token(logits, a, position) != token(logits, b, position);
  }
  EXPECT_GT(different, 50);
  double sum = 0, product = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = uniform_at(7, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u / kDraws;
    product += (u - 0.5) * (uniform_at(7, i + 1) - 0.5) / kDraws;
  }
  EXPECT_NEAR(sum, 0.5, 5 / std::sqrt(12.0 * kDraws));
  EXPECT_NEAR(product, 0, 5 / (12.0 * std::sqrt(kDraws)));
}

TEST(Sampler, LogprobsAreTheUntemperedLogSoftmax) {
  const std::vector<float> logits{0.5, 2, -1, 2};
  const SamplingParams params{.temperature = 0.2, .top_k = 1, .logprobs = true, .top_logprobs = 3};
  const auto sampled = sample(logits, params, 0);
  double sum = 0;
  for (const float x : logits) sum += std::exp(double{x});
  EXPECT_FLOAT_EQ(sampled->logprob, 2 - std::log(sum));
  ASSERT_EQ(sampled->top_logprobs.size(), 3u);
  EXPECT_EQ(sampled->top_logprobs[0].token, 1);
  EXPECT_EQ(sampled->top_logprobs[1].token, 3);
  EXPECT_EQ(sampled->top_logprobs[2].token, 0);
  EXPECT_FLOAT_EQ(sampled->top_logprobs[2].logprob, 0.5 - std::log(sum));
}

TEST(Sampler, RefusesWhatIsNoDistribution) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(sample(std::vector<float>{1, nan}, {}, 3).error().code, Code::kInternal);
  EXPECT_FALSE(sample(std::vector<float>{-INFINITY, -INFINITY}, {}, 3).ok());
  EXPECT_FALSE(sample(std::vector<float>{1, INFINITY}, {}, 3).ok());
}

TEST(SamplingParams, EveryBadValueIsRefusedByName) {
  const auto refused = [](auto set) {
    wire::SamplingParams wire;
    wire.set_top_p(1);
    wire.set_max_tokens(1);
    EXPECT_TRUE(SamplingParams::from_wire(wire, 100).ok());
    set(wire);
    const auto params = SamplingParams::from_wire(wire, 100);
    return params.ok() ? std::string("accepted") : params.error().param;
  };
  EXPECT_EQ(refused([](auto& w) { w.set_temperature(-0.1); }), "temperature");
  EXPECT_EQ(refused([](auto& w) { w.set_temperature(NAN); }), "temperature");
  EXPECT_EQ(refused([](auto& w) { w.set_top_p(0); }), "top_p");
  EXPECT_EQ(refused([](auto& w) { w.set_top_p(1.01); }), "top_p");
  EXPECT_EQ(refused([](auto& w) { w.set_top_k(-1); }), "top_k");
  EXPECT_EQ(refused([](auto& w) { w.set_max_tokens(4'000'000'000u); }), "max_tokens");
  EXPECT_EQ(refused([](auto& w) { w.set_top_logprobs(21); }), "top_logprobs");
  EXPECT_EQ(refused([](auto& w) { w.set_min_p(1.01); }), "min_p");
  EXPECT_EQ(refused([](auto& w) { w.set_presence_penalty(-2.01); }), "presence_penalty");
  EXPECT_EQ(refused([](auto& w) { w.set_frequency_penalty(NAN); }), "frequency_penalty");
  EXPECT_EQ(refused([](auto& w) { w.set_repetition_penalty(-1); }), "repetition_penalty");
  EXPECT_EQ(refused([](auto& w) { w.set_min_tokens(2); }), "min_tokens");
  EXPECT_EQ(refused([](auto& w) { w.add_stop_token_ids(100); }), "stop_token_ids");
  EXPECT_EQ(refused([](auto& w) { w.add_bias_tokens(1); }), "logit_bias");
  const auto bias = [](int token, float value) {
    return [=](auto& w) { w.add_bias_tokens(token), w.add_bias_values(value); };
  };
  EXPECT_EQ(refused(bias(-1, 0)), "logit_bias");
  EXPECT_EQ(refused(bias(1, 101)), "logit_bias");
  EXPECT_EQ(refused(bias(1, 100)), "accepted");
}

}  // namespace
}  // namespace lowkey::worker
