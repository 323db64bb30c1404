// Every parameter that changes the distribution, against transformers' logits processors
// (tests/golden/engine/make_sampling.py).
#include "worker/engine/logit_rules.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>
#include <fstream>
#include <sstream>

#include "worker/engine/sampler.h"

namespace lowkey::worker {
namespace {

namespace json = boost::json;

json::value golden() {
  std::ifstream in(LOWKEY_SOURCE_DIR "/tests/golden/engine/sampling.json");
  std::stringstream text;
  text << in.rdbuf();
  return json::parse(text.str());
}

template <class T>
std::vector<T> numbers(const json::value& value) {
  std::vector<T> out;
  for (const auto& item : value.as_array()) out.push_back(static_cast<T>(item.to_number<double>()));
  return out;
}

SamplingParams params_of(const json::object& from) {
  const auto number = [&](const char* name, double otherwise) {
    return from.contains(name) ? from.at(name).to_number<double>() : otherwise;
  };
  SamplingParams params{.temperature = number("temperature", 1),
                        .top_p = number("top_p", 1),
                        .top_k = static_cast<int>(number("top_k", 0)),
                        .min_p = number("min_p", 0),
                        .presence_penalty = number("presence_penalty", 0),
                        .frequency_penalty = number("frequency_penalty", 0),
                        .repetition_penalty = number("repetition_penalty", 1)};
  if (const auto* bias = from.if_contains("logit_bias")) {
    for (const auto& entry : bias->as_object())
      params.bias.emplace_back(std::stoi(std::string(entry.key())), entry.value().to_number<float>());
  }
  return params;
}

// Draws follow the reference's probabilities, and none falls on a token that it has ruled out.
TEST(LogitRules, DrawsFollowTheLogitsProcessorsOfTransformers) {
  const json::value all = golden();
  TokenCounts counts;
  counts.add_prompt(numbers<int32_t>(all.at("prompt")));
  for (const int32_t token : numbers<int32_t>(all.at("answer"))) counts.add(token);
  constexpr int kDraws = 30000;
  for (const auto& item : all.at("cases").as_array()) {
    SamplingParams params = params_of(item.at("parameters").as_object());
    params.seed = 77;
    const auto logits = numbers<float>(item.at("logits"));
    const auto expected = numbers<double>(item.at("probabilities"));
    std::vector<int> drawn(logits.size());
    for (int i = 0; i < kDraws; ++i) ++drawn[sample(logits, params, i, {.counts = &counts})->token];
    double chi = 0;
    int degrees = -1;
    for (size_t i = 0; i < drawn.size(); ++i) {
      if (expected[i] == 0) {
        EXPECT_EQ(drawn[i], 0) << "token " << i << " of " << item.at("parameters");
        continue;
      }
      const double mean = expected[i] * kDraws;
      if (mean < 5) continue;
      chi += (drawn[i] - mean) * (drawn[i] - mean) / mean;
      ++degrees;
    }
    // Mean d, variance 2 d: five standard deviations, with the seed fixed.
    EXPECT_LT(chi, degrees + 5 * std::sqrt(2.0 * std::max(degrees, 1))) << item.at("parameters");
    // Greedy takes the most likely one.
    params.temperature = 0;
    const auto best = std::max_element(expected.begin(), expected.end()) - expected.begin();
    EXPECT_EQ(sample(logits, params, 0, {.counts = &counts})->token, best) << item.at("parameters");
  }
}

TEST(LogitRules, ForbiddenAndAllowed) {
  const std::vector<float> logits{5, 4, 3, 2, 1};
  const SamplingParams greedy{.temperature = 0};
  const std::vector<int32_t> forbidden{0, 1};
  EXPECT_EQ(sample(logits, greedy, 0, {.forbidden = forbidden})->token, 2);
  TokenSet allowed(5);
  allowed.insert(0);
  allowed.insert(4);
  EXPECT_EQ(sample(logits, greedy, 0, {.allowed = &allowed})->token, 0);
  EXPECT_EQ(sample(logits, greedy, 0, {.forbidden = forbidden, .allowed = &allowed})->token, 4);
  const TokenSet nothing(5);
  EXPECT_EQ(sample(logits, greedy, 0, {.allowed = &nothing}).error().code, Code::kInternal);
  for (int i = 0; i < 100; ++i) {
    const int32_t token = sample(logits, {.temperature = 9, .top_k = 3}, i, {.allowed = &allowed})->token;
    EXPECT_TRUE(token == 0 || token == 4) << "top-k counts what is allowed";
  }
}

TEST(LogitRules, LogprobsAreTheModelsOwn) {
  const std::vector<float> logits{1, 2, 3};
  const SamplingParams params{.temperature = 0, .logprobs = true, .top_logprobs = 1, .bias = {{0, 10.f}}};
  const auto sampled = sample(logits, params, 0);
  const double sum = std::exp(1.0) + std::exp(2.0) + std::exp(3.0);
  EXPECT_EQ(sampled->token, 0);
  EXPECT_FLOAT_EQ(sampled->logprob, static_cast<float>(1 - std::log(sum)));
  EXPECT_EQ(sampled->top_logprobs[0].token, 2);
  const SampledToken other = scored(logits, 1, 2);
  EXPECT_FLOAT_EQ(other.logprob, static_cast<float>(2 - std::log(sum)));
  EXPECT_EQ(other.top_logprobs[1].token, 1);
}

}  // namespace
}  // namespace lowkey::worker
