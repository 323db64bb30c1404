#include "coordinator/admission/admission.h"

#include <gtest/gtest.h>

#include <vector>

#include "monitoring/metrics.h"

namespace lowkey::coordinator {
namespace {

struct AdmissionTest : testing::Test {
  monitoring::Metrics metrics{{{"role", "coordinator"}, {"rank", "0"}}};
};

TEST_F(AdmissionTest, HoldsNoMoreThanItsLimit) {
  Admission admission(2, metrics);
  auto first = admission.admit();
  auto second = admission.admit();
  EXPECT_TRUE(first && second);
  EXPECT_FALSE(admission.admit());
  Admission::Ticket moved = *std::move(first);  // moving a ticket does not give its place back
  EXPECT_EQ(admission.held(), 2u);
  second.reset();
  EXPECT_EQ(admission.held(), 1u);
  EXPECT_TRUE(admission.admit());
}

TEST_F(AdmissionTest, RetryAfterFollowsTheRate) {
  Admission admission(100, metrics);  // advice: until 10 places are free
  const TimePoint start = Clock::now();
  EXPECT_EQ(admission.retry_after_seconds(start), 1);  // nothing known yet
  // Two a second for a minute: ten places take about five seconds.
  for (int i = 0; i < 120; ++i) admission.note_finished(start + std::chrono::milliseconds(500 * i));
  const TimePoint end = start + std::chrono::seconds(60);
  EXPECT_NEAR(admission.retry_after_seconds(end), 5, 1);
  // Nothing finishes any more: the advice grows, up to a minute.
  EXPECT_GT(admission.retry_after_seconds(end + std::chrono::seconds(10)), 10);
  EXPECT_EQ(admission.retry_after_seconds(end + std::chrono::hours(1)), 60);
  // A thousand a second: at least one second.
  for (int i = 0; i < 60'000; ++i) admission.note_finished(end + std::chrono::milliseconds(i));
  EXPECT_EQ(admission.retry_after_seconds(end + std::chrono::minutes(1)), 1);
}

}  // namespace
}  // namespace lowkey::coordinator
