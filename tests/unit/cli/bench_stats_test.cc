#include "cli/bench_stats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <random>

namespace lowkey::cli {
namespace {

using std::chrono::milliseconds;

TEST(DurationHistogram, PercentilesAreWithinOnePercent) {
  std::mt19937 random(7);
  std::lognormal_distribution<double> distribution(-4, 2);
  DurationHistogram histogram;
  std::vector<double> values;
  double sum = 0;
  for (int i = 0; i < 20000; ++i) {
    values.push_back(distribution(random));
    histogram.add(values.back());
    sum += values.back();
  }
  std::ranges::sort(values);
  for (double percent : {1., 50., 90., 99., 99.9, 100.}) {
    double exact = values[static_cast<size_t>(std::ceil(percent / 100 * 20000)) - 1];
    EXPECT_NEAR(histogram.percentile(percent), exact, 0.01 * exact) << percent;
  }
  EXPECT_NEAR(histogram.mean(), sum / 20000, 1e-9);
  EXPECT_EQ(histogram.least(), values.front());
  EXPECT_EQ(histogram.most(), values.back());
}

TEST(DurationHistogram, EdgesAreSafe) {
  DurationHistogram histogram;
  EXPECT_EQ(histogram.percentile(99), 0);
  EXPECT_EQ(histogram.mean(), 0);
  histogram.add(0);
  histogram.add(1e9);
  EXPECT_EQ(histogram.percentile(0), histogram.percentile(50));
  EXPECT_GE(histogram.percentile(100), 36000 / 1.01);
}

RequestOutcome answered(int first_ms, int last_ms, std::vector<int> gaps_ms) {
  RequestOutcome outcome;
  outcome.to_first = milliseconds(first_ms);
  outcome.to_last = milliseconds(last_ms);
  for (int gap : gaps_ms) outcome.gaps.push_back(milliseconds(gap));
  outcome.prompt_tokens = 10;
  outcome.output_tokens = 3;
  outcome.cached = {.all = 4, .device = 3, .host = 1};
  return outcome;
}

BenchStats some_stats() {
  BenchStats stats;
  stats.add(answered(100, 130, {10, 20}));
  stats.add(answered(200, 230, {30, 10}));
  RequestOutcome refused;
  refused.error = "http_429";
  refused.detail = "busy";
  stats.add(refused);
  stats.add(refused);
  stats.seconds = 2;
  return stats;
}

TEST(BenchStats, FailedRequestsHaveNoLatency) {
  auto stats = some_stats();
  EXPECT_EQ(stats.answered, 2u);
  EXPECT_EQ(stats.failed, 2u);
  EXPECT_EQ(stats.to_first_token.count(), 2u);
  EXPECT_NEAR(stats.to_first_token.mean(), 0.15, 1e-9);
  EXPECT_EQ(stats.between_tokens.count(), 4u);
  EXPECT_NEAR(stats.between_tokens.mean(), 0.0175, 1e-9);
  EXPECT_EQ(stats.errors.at("http_429"), 2u);
}

TEST(BenchStats, ReportsAsTextAndJson) {
  auto stats = some_stats();
  auto text = stats.text();
  EXPECT_NE(text.find("2 answered, 2 failed in 2.00 s (1.00 requests/s)"), std::string::npos) << text;
  EXPECT_NE(text.find("20 in (10.0/s), 6 out (3.0/s)"), std::string::npos) << text;
  EXPECT_NE(text.find("8 (40.0 %): 6 on the device, 2 in host memory, 0 on disk"), std::string::npos) << text;
  EXPECT_NE(text.find("error http_429        2 times; the first: busy"), std::string::npos) << text;
  auto json = boost::json::parse(stats.json(BenchOptions{})).as_object();
  EXPECT_EQ(json.at("output_tokens_per_second").to_number<double>(), 3);
  EXPECT_EQ(json.at("errors").at("http_429").to_number<int>(), 2);
  EXPECT_NEAR(json.at("to_first_token_seconds").at("p50").to_number<double>(), 0.1, 0.001);
  EXPECT_EQ(json.at("load").at("concurrency").to_number<int>(), 8);
  EXPECT_FALSE(json.at("load").as_object().contains("rate"));
  EXPECT_EQ(json.at("cached_tokens").to_number<int>(), 8);
  EXPECT_EQ(json.at("cached_tokens_by_tier").at("host").to_number<int>(), 2);
  EXPECT_NEAR(json.at("hit_rate").to_number<double>(), 0.4, 1e-12);
}

TEST(BenchStats, AReplayIsDescribedByItsTrace) {
  BenchOptions options;
  options.trace = {.file = "t.jsonl", .speed = 2, .tokens = 0.5, .skip = 3, .requests = 4};
  auto load = boost::json::parse(some_stats().json(options)).at("load").as_object();
  EXPECT_EQ(load.at("trace").at("file"), "t.jsonl");
  EXPECT_EQ(load.at("trace").at("tokens").to_number<double>(), 0.5);
  EXPECT_FALSE(load.contains("prompt_tokens"));
}

}  // namespace
}  // namespace lowkey::cli
