#include "base/watchdog.h"

#include <gtest/gtest.h>

#include <future>

namespace lowkey {
namespace {

using std::chrono::milliseconds;

TEST(Watchdog, ReportsWorkThatDoesNotEnd) {
  std::promise<void> late;
  Watchdog watchdog(milliseconds(20), [&] { late.set_value(); });
  watchdog.begin();
  EXPECT_EQ(late.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
}

TEST(Watchdog, SaysNothingOfWorkThatEnds) {
  constexpr Duration kLimit = milliseconds(200);
  bool was_scheduled = false;
  for (int attempt = 0; attempt < 20 && !was_scheduled; ++attempt) {
    std::promise<void> late;
    auto future = late.get_future();
    Watchdog watchdog(kLimit, [&] { late.set_value(); });
    const TimePoint begin = Clock::now();
    for (int i = 0; i < 1000; ++i) {
      watchdog.begin();
      watchdog.end();
    }
    // Where this thread stood still for so long, work did, too.
    was_scheduled = Clock::now() - begin < kLimit;
    if (!was_scheduled) continue;
    EXPECT_EQ(future.wait_for(3 * kLimit / 2), std::future_status::timeout);
    watchdog.begin();  // and it still watches after that
    EXPECT_EQ(future.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  }
  EXPECT_TRUE(was_scheduled);
}

TEST(Watchdog, EndsWhileWorkIsUnderWay) {
  Watchdog watchdog(std::chrono::hours(1), [] { FAIL(); });
  watchdog.begin();
}

}  // namespace
}  // namespace lowkey
