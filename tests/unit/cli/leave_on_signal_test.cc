#include "cli/leave_on_signal.h"

#include <gtest/gtest.h>

#include <csignal>
#include <string>

namespace lowkey::cli {
namespace {

constexpr auto kPatience = std::chrono::seconds(20);

struct Leaving {
  boost::asio::io_context io;
  std::string said;
  LeaveOnSignal leave;

  Leaving(bool somebody, Duration patience)
      : leave(
            io, patience,
            [this, somebody] {
              said += "asked ";
              return somebody;
            },
            [this] { said += "ended"; }) {}

  bool run_until(const std::string& expected) {
    const Deadline deadline = Deadline::in(kPatience);
    while (said != expected && !deadline.passed() && io.run_one_for(kPatience) > 0) {
    }
    return said == expected;
  }
};

TEST(LeaveOnSignal, EndsAtOnceWhereNobodyCanBeAsked) {
  for (const int signal : {SIGTERM, SIGINT}) {
    Leaving process(false, std::chrono::hours(1));
    EXPECT_FALSE(process.leave.asked());
    std::raise(signal);
    EXPECT_TRUE(process.run_until("asked ended")) << process.said;
    EXPECT_TRUE(process.leave.asked());
    EXPECT_EQ(process.io.run(), 0u) << "no timer is left";
  }
}

TEST(LeaveOnSignal, EndsWhenItsPatienceIsOver) {
  Leaving process(true, std::chrono::milliseconds(1));
  std::raise(SIGTERM);
  EXPECT_TRUE(process.run_until("asked ended")) << process.said;
}

TEST(LeaveOnSignal, WaitsForTheAnswerMeanwhile) {
  Leaving process(true, std::chrono::hours(1));
  std::raise(SIGTERM);
  EXPECT_TRUE(process.run_until("asked ")) << process.said;
  process.io.poll();
  EXPECT_EQ(process.said, "asked ");
}

}  // namespace
}  // namespace lowkey::cli
