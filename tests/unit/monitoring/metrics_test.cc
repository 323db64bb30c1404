#include "monitoring/metrics.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "tests/support/prometheus_text.h"

namespace lowkey::monitoring {
namespace {

using test::read_prometheus_text;

std::string page_of(const Metrics& metrics) {
  std::vector<std::string> blobs{metrics.serialize()};
  auto page = render_page(blobs);
  EXPECT_TRUE(page.ok()) << page.error().message;
  return page.ok() ? *page : "";
}

TEST(Metrics, EveryTypeReachesThePage) {
  Metrics metrics({{"role", "worker"}, {"rank", "1"}});
  metrics.declare(Feeder::kLeader);
  metrics.add(Metric::kGenerationTokens, 3);
  metrics.add(Metric::kGenerationTokens);
  metrics.set(Metric::kKvBytes, 4096, {{"tier", "device"}, {"state", "used"}});
  metrics.observe(Metric::kStepSeconds, 0.0015);
  metrics.observe(Metric::kStepSeconds, 100);
  auto page = read_prometheus_text(page_of(metrics));
  ASSERT_EQ(page.error, "");
  EXPECT_EQ(page.value("lowkey_generation_tokens_total", {{"role", "worker"}, {"rank", "1"}}), 4);
  EXPECT_EQ(page.value("lowkey_kv_bytes",
                       {{"role", "worker"}, {"rank", "1"}, {"tier", "device"}, {"state", "used"}}),
            4096);
  auto bucket = [&](const std::string& le) {
    return page.value("lowkey_step_seconds_bucket", {{"role", "worker"}, {"rank", "1"}, {"le", le}});
  };
  EXPECT_EQ(bucket("0.001"), 0);
  EXPECT_EQ(bucket("0.002"), 1);
  EXPECT_EQ(bucket("10"), 1);
  EXPECT_EQ(bucket("+Inf"), 2);
  EXPECT_DOUBLE_EQ(page.value("lowkey_step_seconds_sum", {{"role", "worker"}, {"rank", "1"}}), 100.0015);
  EXPECT_EQ(page.value("lowkey_step_seconds_count", {{"role", "worker"}, {"rank", "1"}}), 2);
}

TEST(Metrics, CountersOfTheRoleStartAtZero) {
  Metrics store({{"role", "store"}, {"rank", "3"}});
  auto page = read_prometheus_text(page_of(store));
  ASSERT_EQ(page.error, "");
  EXPECT_EQ(page.value("lowkey_store_evicted_pages_total", {{"role", "store"}, {"rank", "3"}}), 0);
  EXPECT_EQ(page.value("lowkey_store_expired_total", {{"role", "store"}, {"rank", "3"}, {"what", "lease"}}),
            0);
  EXPECT_FALSE(page.types.contains("lowkey_generation_tokens_total"));
  EXPECT_FALSE(page.types.contains("lowkey_store_leases")) << "a gauge is not known before it is set";
}

TEST(Metrics, UnlistedAndUncleanLabelValuesAreHarmless) {
  Metrics metrics({{"role", "worker"}, {"rank", "1"}});
  metrics.add(Metric::kSpillOutcomes, 1, {{"outcome", "exploded"}});
  metrics.set(Metric::kInfo, 1,
              {{"version", "1"},
               {"model", "a\"b\\c\nd\xff\xfe"},
               {"recipe", "exact"},
               {"dtype", "bf16"},
               {"device", "cpu"}});
  auto page = read_prometheus_text(page_of(metrics));
  ASSERT_EQ(page.error, "");
  EXPECT_EQ(
      page.value("lowkey_kv_spill_pages_total", {{"role", "worker"}, {"rank", "1"}, {"outcome", "other"}}),
      1);
  EXPECT_EQ(page.value("lowkey_info", {{"role", "worker"},
                                       {"rank", "1"},
                                       {"version", "1"},
                                       {"model", "a\"b\\c\nd??"},
                                       {"recipe", "exact"},
                                       {"dtype", "bf16"},
                                       {"device", "cpu"}}),
            1);
}

TEST(Metrics, SeriesOfAnOpenLabelAreBounded) {
  Metrics metrics({{"role", "coordinator"}, {"rank", "0"}});
  for (int i = 0; i < 5000; ++i)
    metrics.add(Metric::kHttpRequests, 1, {{"endpoint", "/" + std::to_string(i)}, {"status", "404"}});
  auto page = read_prometheus_text(page_of(metrics));
  ASSERT_EQ(page.error, "");
  size_t series = 0;
  double total = 0;
  for (const auto& [key, value] : page.samples)
    if (key.first == "lowkey_http_requests_total") ++series, total += value;
  EXPECT_LE(series, Metrics::kMaxSeries + 1);
  EXPECT_EQ(total, 5000) << "what does not fit is counted as other, not lost";
}

TEST(Metrics, ARemovedSeriesIsGoneAndMakesRoom) {
  Metrics metrics({{"role", "coordinator"}, {"rank", "0"}});
  const auto rank_up = [](int rank) {
    return Labels{{"peer_role", "worker"}, {"peer_rank", std::to_string(rank)}};
  };
  metrics.remove(Metric::kRankUp, rank_up(1));  // there is none
  for (int rank = 0; rank < 5000; ++rank) {     // ranks that come and go
    metrics.set(Metric::kRankUp, 1, rank_up(rank));
    if (rank > 0) metrics.remove(Metric::kRankUp, rank_up(rank - 1));
  }
  auto page = read_prometheus_text(page_of(metrics));
  ASSERT_EQ(page.error, "");
  const auto value = [&](int rank) {
    return page.value("lowkey_rank_up", {{"role", "coordinator"},
                                         {"rank", "0"},
                                         {"peer_role", "worker"},
                                         {"peer_rank", std::to_string(rank)}});
  };
  EXPECT_EQ(value(4999), 1);
  size_t series = 0;
  for (const auto& [key, number] : page.samples) series += key.first == "lowkey_rank_up";
  EXPECT_EQ(series, 1u);
}

TEST(MetricsDeathTest, LabelsMustBeTheCatalogs) {
  Metrics metrics({{"role", "worker"}, {"rank", "1"}});
  EXPECT_DEATH(metrics.add(Metric::kPreemptions, 1, {{"why", "x"}}), "lowkey_num_preemptions_total");
  EXPECT_DEATH(metrics.add(Metric::kSpillOutcomes), "outcome");
  EXPECT_DEATH(metrics.add(Metric::kSpillOutcomes, 1, {{"result", "stored"}}), "outcome");
  EXPECT_DEATH(metrics.set(Metric::kPreemptions, 1), "another type");
  EXPECT_DEATH(metrics.add(Metric::kPreemptions, -1), "-1");
  EXPECT_DEATH(Metrics(Labels{{"role", "worker"}}), "rank");
  EXPECT_DEATH(Metrics(Labels{{"role", "worker"}, {"rank", "1"}, {"tier", "x"}}), "tier");
}

TEST(Metrics, ThreadsLoseNothing) {
  Metrics metrics({{"role", "worker"}, {"rank", "1"}});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        metrics.add(Metric::kGenerationTokens);
        metrics.observe(Metric::kStepSeconds, 0.1);
        metrics.add(Metric::kSpillOutcomes, 1, {{"outcome", i % 2 ? "stored" : "failed"}});
        if (i % 500 == 0) metrics.serialize();
      }
    });
  for (auto& thread : threads) thread.join();
  auto page = read_prometheus_text(page_of(metrics));
  EXPECT_EQ(page.value("lowkey_generation_tokens_total", {{"role", "worker"}, {"rank", "1"}}), 8000);
  EXPECT_EQ(page.value("lowkey_step_seconds_count", {{"role", "worker"}, {"rank", "1"}}), 8000);
  EXPECT_EQ(
      page.value("lowkey_kv_spill_pages_total", {{"role", "worker"}, {"rank", "1"}, {"outcome", "failed"}}),
      4000);
}

std::vector<std::string> a_cluster() {
  Metrics coordinator({{"role", "coordinator"}, {"rank", "0"}});
  Metrics leader({{"role", "worker"}, {"rank", "1"}});
  Metrics follower({{"role", "worker"}, {"rank", "2"}});
  Metrics store({{"role", "store"}, {"rank", "3"}});
  leader.declare(Feeder::kLeader);
  coordinator.observe(Metric::kTimeToFirstToken, 0.3);
  for (auto* worker : {&leader, &follower})
    worker->set(Metric::kKvBytes, 1e6, {{"tier", "device"}, {"state", "capacity"}});
  store.set(Metric::kKvBytes, 2e6, {{"tier", "host"}, {"state", "capacity"}});
  return {coordinator.serialize(), leader.serialize(), follower.serialize(), store.serialize()};
}

TEST(RenderPage, MergesFamiliesOfAllProcesses) {
  auto text = render_page(a_cluster());
  ASSERT_TRUE(text.ok()) << text.error().message;
  auto page = read_prometheus_text(*text);  // refuses a family that appears in two places
  ASSERT_EQ(page.error, "");
  EXPECT_EQ(page.value("lowkey_kv_bytes",
                       {{"role", "worker"}, {"rank", "2"}, {"tier", "device"}, {"state", "capacity"}}),
            1e6);
  EXPECT_EQ(page.value("lowkey_kv_bytes",
                       {{"role", "store"}, {"rank", "3"}, {"tier", "host"}, {"state", "capacity"}}),
            2e6);
}

TEST(RenderPage, RefusesTheSameProcessTwice) {
  auto blobs = a_cluster();
  blobs.push_back(blobs[1]);
  EXPECT_FALSE(render_page(blobs).ok());
}

TEST(RenderPage, PassesPromtool) {
  if (std::system("command -v promtool > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "promtool (package prometheus) is absent";
  auto text = render_page(a_cluster());
  ASSERT_TRUE(text.ok());
  auto path = std::filesystem::temp_directory_path() / ("lowkey_page_" + std::to_string(getpid()));
  std::ofstream(path) << *text;
  FILE* promtool = popen(("promtool check metrics < " + path.string() + " 2>&1").c_str(), "r");
  ASSERT_TRUE(promtool);
  std::string output;
  for (int c; (c = fgetc(promtool)) != EOF;) output += static_cast<char>(c);
  EXPECT_EQ(pclose(promtool), 0) << output;
  EXPECT_EQ(output, "");
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace lowkey::monitoring
