#include "transport/loopback/loopback_comm.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace lowkey::transport {
namespace {

using namespace std::chrono_literals;

void on_all(std::vector<std::unique_ptr<HostComm>>& comms, const std::function<void(HostComm&)>& f) {
  std::vector<std::thread> threads;
  for (auto& comm : comms) threads.emplace_back([&f, &comm] { f(*comm); });
  for (auto& thread : threads) thread.join();
}

TEST(LoopbackComm, ReducesTheSameBitsForEveryRank) {
  auto comms = make_loopback_comms(4);
  std::vector<std::vector<float>> results(4);
  on_all(comms, [&](HostComm& comm) {
    for (int round = 0; round < 200; ++round) {
      std::vector<float> data(33);
      for (size_t i = 0; i < data.size(); ++i) data[i] = 0.1f * (comm.rank() + 1) * (i + round);
      ASSERT_TRUE(comm.all_reduce_sum(data, Deadline::in(20s)).ok());
      results[comm.rank()] = data;
    }
  });
  for (size_t i = 0; i < 33; ++i) EXPECT_NEAR(results[0][i], 1.0f * (i + 199), 1e-3);
  for (int rank = 1; rank < 4; ++rank) EXPECT_EQ(results[rank], results[0]);
}

TEST(LoopbackComm, GathersByRank) {
  auto comms = make_loopback_comms(3);
  on_all(comms, [&](HostComm& comm) {
    const std::vector<float> mine{1.0f * comm.rank(), 10.0f * comm.rank()};
    std::vector<float> all(comm.rank() == 1 ? 6 : 0);
    ASSERT_TRUE(comm.gather(mine, all, 1, Deadline::in(20s)).ok());
    if (comm.rank() == 1) EXPECT_EQ(all, (std::vector<float>{0, 0, 1, 10, 2, 20}));
    ASSERT_TRUE(comm.barrier(Deadline::in(20s)).ok());
    auto names = comm.all_gather("rank " + std::to_string(comm.rank()), Deadline::in(20s));
    ASSERT_TRUE(names.ok());
    EXPECT_EQ(*names, (std::vector<std::string>{"rank 0", "rank 1", "rank 2"}));
  });
}

TEST(LoopbackComm, AMissingRankBreaksItAtTheDeadline) {
  auto comms = make_loopback_comms(3);
  std::atomic<int> expired{0};
  on_all(comms, [&](HostComm& comm) {
    if (comm.rank() == 2) return;
    std::vector<float> data(4);
    const Status status = comm.all_reduce_sum(data, Deadline::in(50ms));
    ASSERT_FALSE(status.ok());
    expired += status.error().code == Code::kDeadlineExceeded;
  });
  EXPECT_EQ(expired, 2);
  EXPECT_FALSE(comms[2]->barrier(Deadline::in(20s)).ok());
}

TEST(LoopbackComm, OneRankNeedsNobody) {
  auto comms = make_loopback_comms(1);
  std::vector<float> data{1, 2};
  ASSERT_TRUE(comms[0]->all_reduce_sum(data, Deadline::in(1s)).ok());
  EXPECT_EQ(data, (std::vector<float>{1, 2}));
}

}  // namespace
}  // namespace lowkey::transport
