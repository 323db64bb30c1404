#include "worker/engine/cost_model.h"

#include <gtest/gtest.h>

#include <limits>

namespace lowkey::worker {
namespace {

using Decision = PrefixForecast::Decision;

CostModel measured(double prefill, double rate, double latency, double step = 0.01) {
  CostModel model;
  for (int i = 0; i < 20; ++i) {
    model.on_step(static_cast<int>(prefill * step), 0, step);
    const double bytes = 1e6 * (1 + i % 4);
    model.on_restore(static_cast<uint64_t>(bytes), latency + bytes / rate);
  }
  return model;
}

TEST(CostModel, FindsRatesAndLatency) {
  const MeasuredRates rates = measured(10'000, 1e9, 0.002).rates();
  EXPECT_NEAR(rates.prefill_tokens_per_second, 10'000, 1);
  EXPECT_NEAR(rates.restore_bytes_per_second, 1e9, 1e6);
  EXPECT_NEAR(rates.restore_latency_seconds, 0.002, 1e-5);
  EXPECT_NEAR(rates.step_seconds, 0.01, 1e-9);
  EXPECT_EQ(rates.decode_step_seconds, 0) << "no step has decoded alone";
}

TEST(CostModel, FollowsWhatChanges) {
  CostModel model = measured(10'000, 1e9, 0.002);
  for (int i = 0; i < 60; ++i) {
    const double bytes = 1e6 * (1 + i % 4);
    model.on_restore(static_cast<uint64_t>(bytes), 0.01 + bytes / 1e8);
  }
  EXPECT_NEAR(model.rates().restore_bytes_per_second, 1e8, 1e7);
  EXPECT_NEAR(model.rates().restore_latency_seconds, 0.01, 1e-3);
}

TEST(CostModel, EqualTransfersShowARateAndNoLatency) {
  CostModel model;
  for (int i = 0; i < 5; ++i) model.on_restore(1'000'000, 0.1);
  EXPECT_NEAR(model.rates().restore_bytes_per_second, 1e7, 1);
  EXPECT_EQ(model.rates().restore_latency_seconds, 0);
}

TEST(CostModel, DecodesInAStepAreNotPrefill) {
  CostModel model;
  for (int i = 0; i < 50; ++i) model.on_step(0, 8, 0.004);
  for (int i = 0; i < 50; ++i) model.on_step(100, 8, 0.014);
  EXPECT_NEAR(model.rates().decode_step_seconds, 0.004, 1e-9);
  EXPECT_NEAR(model.rates().prefill_tokens_per_second, 10'000, 1);
}

TEST(CostModel, AStepThatOthersDecodeInTakesAsManyPromptTokensAsTheyCanWaitFor) {
  CostModel model;
  EXPECT_EQ(model.prefill_beside_decodes(), std::numeric_limits<int>::max()) << "nothing was measured";
  model.on_step(500, 0, 0.25);
  EXPECT_EQ(model.prefill_beside_decodes(), 192) << "0.1 s at 2,000 a second, in whole 32s";
  for (int i = 0; i < 500; ++i) model.on_step(0, 8, 0.02);
  EXPECT_EQ(model.prefill_beside_decodes(), 160) << "what the decodes leave of it";
  for (int i = 0; i < 500; ++i) model.on_step(0, 8, 0.2);
  EXPECT_NEAR(model.prefill_beside_decodes(), 800, 32) << "twice what the decodes take";
  CostModel slow;
  slow.on_step(10, 0, 1);
  EXPECT_EQ(slow.prefill_beside_decodes(), 32) << "it goes on";
}

TEST(CostModel, AStoreThatGivesNothingIsDecidedAgainst) {
  const PrefixQuestion question{.tokens = 5'000, .first_bytes = 1'000'000, .all_bytes = 1'000'000};
  CostModel model = measured(10'000, 1e9, 0.002);
  const double rate = model.rates().restore_bytes_per_second;
  EXPECT_EQ(model.forecast(question).decision, Decision::kRestore);
  model.on_failed_restore(2);
  EXPECT_EQ(model.forecast(question).decision, Decision::kRecompute) << "0.5 s";
  EXPECT_EQ(model.rates().restore_bytes_per_second, rate) << "that is what the link can do";
  EXPECT_EQ(model.bytes_within(0.5, 0), 0u);
  for (int i = 0; i < 10; ++i) model.on_failed_restore(2);
  EXPECT_NEAR(model.rates().restore_latency_seconds, 2, 0.01);
  int probes = 0;
  for (int i = 0; i < 2 * CostModel::kProbeEvery; ++i)
    probes += model.decide(question).decision != Decision::kRecompute;
  EXPECT_EQ(probes, 2);
  for (int i = 0; i < 3; ++i) model.on_restore(1'000'000, 0.003);
  EXPECT_EQ(model.forecast(question).decision, Decision::kRestore) << "it gives again";

  CostModel never;  // nothing has come yet
  never.on_step(100, 0, 0.01);
  never.on_failed_restore(0.001);
  EXPECT_EQ(never.forecast(question).decision, Decision::kRestore) << "a miss that was told at once";
  never.on_failed_restore(2);
  EXPECT_EQ(never.forecast(question).decision, Decision::kRecompute);
  EXPECT_GE(never.forecast(question).restore_seconds(), 1);
}

TEST(CostModel, NothingIsComputedAgainBeforeBothSidesAreMeasured) {
  const PrefixQuestion question{.tokens = 1, .first_bytes = 1u << 30, .all_bytes = 1u << 30};
  CostModel nothing;
  EXPECT_EQ(nothing.forecast(question).decision, Decision::kRestore);
  EXPECT_EQ(nothing.forecast(question).all_seconds, 0) << "not known";
  CostModel only_steps;
  only_steps.on_step(100, 0, 0.001);
  EXPECT_EQ(only_steps.forecast(question).decision, Decision::kRestore);
  EXPECT_GT(only_steps.forecast(question).compute_seconds, 0);
  CostModel only_restores;
  only_restores.on_restore(1000, 10);
  EXPECT_EQ(only_restores.forecast(question).decision, Decision::kRestore);
  PrefixQuestion stepwise = question;
  stepwise.first_bytes /= 4;
  EXPECT_EQ(nothing.forecast(stepwise).decision, Decision::kProgressive);
}

TEST(CostModel, StartsWithTheFirstLevelsOnlyWhereTheRestTakesLongerThanAStep) {
  const CostModel model = measured(1'000, 1e8, 0.001);  // a step: 10 ms, 1 MB
  const PrefixQuestion small{.tokens = 8192, .first_bytes = 200'000, .all_bytes = 900'000};
  EXPECT_EQ(model.forecast(small).decision, Decision::kRestore);
  const PrefixQuestion large{.tokens = 8192, .first_bytes = 2'000'000, .all_bytes = 9'000'000};
  const PrefixForecast forecast = model.forecast(large);
  EXPECT_EQ(forecast.decision, Decision::kProgressive);
  EXPECT_NEAR(forecast.first_seconds, 0.021, 1e-3);
  EXPECT_NEAR(forecast.all_seconds, 0.091, 1e-3);
  EXPECT_NEAR(forecast.compute_seconds, 8.192, 1e-2);
  EXPECT_EQ(forecast.restore_seconds(), forecast.first_seconds);
}

TEST(CostModel, ComputesWhereTheLinkIsSlower) {
  const CostModel model = measured(10'000, 1e6, 0.1);
  const PrefixQuestion question{.tokens = 320, .first_bytes = 2'000'000, .all_bytes = 2'000'000};
  const PrefixForecast forecast = model.forecast(question);
  EXPECT_EQ(forecast.decision, Decision::kRecompute);
  EXPECT_NEAR(forecast.compute_seconds, 0.032, 1e-3);
  EXPECT_NEAR(forecast.restore_seconds(), 2.1, 0.05);
}

TEST(CostModel, QueuesCountOnBothSides) {
  const CostModel model = measured(1'000, 1e8, 0);
  PrefixQuestion question{.tokens = 100, .first_bytes = 9'000'000, .all_bytes = 9'000'000};
  EXPECT_EQ(model.forecast(question).decision, Decision::kRestore);
  question.queued_bytes = 2'000'000;  // behind others' transfers: 110 ms against 100
  EXPECT_EQ(model.forecast(question).decision, Decision::kRecompute);
  question.queued_tokens = 50;  // the queue is worked off while the pages come
  EXPECT_EQ(model.forecast(question).decision, Decision::kRestore);
  EXPECT_NEAR(model.forecast(question).compute_seconds, 0.15, 1e-3);
  question.queued_tokens = 1000;
  EXPECT_NEAR(model.forecast(question).all_seconds, 1, 1e-2);
}

TEST(CostModel, TriesARestoreNowAndThen) {
  CostModel model = measured(10'000, 1e6, 0.1);
  const PrefixQuestion question{.tokens = 320, .first_bytes = 1'000'000, .all_bytes = 2'000'000};
  int restores = 0;
  for (int i = 0; i < 4 * CostModel::kProbeEvery; ++i)
    restores += model.decide(question).decision != Decision::kRecompute;
  EXPECT_EQ(restores, 4);
}

}  // namespace
}  // namespace lowkey::worker
