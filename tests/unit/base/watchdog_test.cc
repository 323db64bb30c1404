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
  EXPECT_EQ(late.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

TEST(Watchdog, SaysNothingOfWorkThatEnds) {
  std::promise<void> late;
  auto future = late.get_future();
  {
    Watchdog watchdog(milliseconds(200), [&] { late.set_value(); });
    for (int i = 0; i < 1000; ++i) {
      watchdog.begin();
      watchdog.end();
    }
    EXPECT_EQ(future.wait_for(milliseconds(300)), std::future_status::timeout);
    watchdog.begin();  // and it still watches after that
    EXPECT_EQ(future.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  }
}

TEST(Watchdog, EndsWhileWorkIsUnderWay) {
  Watchdog watchdog(std::chrono::hours(1), [] { FAIL(); });
  watchdog.begin();
}

}  // namespace
}  // namespace lowkey
