#include "kernels/cpu/compute_pool.h"

#include <gtest/gtest.h>

#include <time.h>

#include <array>
#include <atomic>
#include <chrono>
#include <numeric>
#include <vector>

namespace lowkey::kernels {
namespace {

TEST(ComputePool, EveryTaskRunsOnceAndThreadNumbersAreExclusive) {
  for (int threads : {1, 2, 3, 5}) {
    ComputePool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    std::vector<std::atomic<int>> busy(threads);
    for (int round = 0; round < 300; ++round) {
      const int tasks = round % 37;
      std::vector<std::atomic<int>> runs(tasks);
      pool.parallel_for(tasks, [&](int task, int thread) {
        ASSERT_EQ(busy[thread].fetch_add(1), 0) << "two tasks on thread number " << thread;
        runs[task].fetch_add(1);
        busy[thread].fetch_sub(1);
      });
      for (int task = 0; task < tasks; ++task) ASSERT_EQ(runs[task].load(), 1) << "task " << task;
    }
  }
}

// Also in parts: every thread has one, and the others' when they are late.
TEST(ComputePool, EveryTaskOfPartsRunsOnce) {
  for (int threads : {1, 2, 3, 5}) {
    ComputePool pool(threads);
    for (int round = 0; round < 2000; ++round) {
      const int tasks = round % 37;
      std::array<std::atomic<int>, 37> runs{};
      const auto run = [&](int task, int) { runs[task].fetch_add(1); };
      round % 3 == 0 ? pool.parallel_for(tasks, run) : pool.parallel_parts(tasks, run);
      for (int task = 0; task < tasks; ++task) ASSERT_EQ(runs[task].load(), 1) << "task " << task;
    }
  }
}

TEST(ComputePool, PartsAreConsecutive) {
  ComputePool pool(3);
  const int expected[] = {3, 3, 3, 6, 6, 6, 10, 10, 10, 10};
  for (int task = 0; task < 10; ++task) EXPECT_EQ(pool.end_of_part(task, 10), expected[task]) << task;
  EXPECT_EQ(pool.end_of_part(1, 2), 2);
}

// What tasks write is seen by the caller, what the caller wrote is seen by tasks, without any other lock.
TEST(ComputePool, PublishesMemoryBothWays) {
  ComputePool pool(4);
  std::vector<int> values(1000, 0);
  for (int round = 1; round <= 500; ++round) {
    std::vector<int> add(values.size(), round);
    pool.parallel_for(20, [&](int task, int) {
      for (int i = task * 50; i < (task + 1) * 50; ++i) values[i] += add[i];
    });
    ASSERT_EQ(std::accumulate(values.begin(), values.end(), 0), 1000 * round * (round + 1) / 2);
  }
}

TEST(ComputePool, IdleCostsNoCpu) {
  ComputePool pool(4);
  pool.parallel_for(100, [](int, int) {});
  timespec before{}, after{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
  timespec until{0, 100'000'000};
  ::clock_nanosleep(CLOCK_MONOTONIC, 0, &until, nullptr);  // the measured span itself
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  EXPECT_GE(std::chrono::steady_clock::now(), deadline);
  const double cpu =
      static_cast<double>(after.tv_sec - before.tv_sec) + 1e-9 * (after.tv_nsec - before.tv_nsec);
  EXPECT_LT(cpu, 0.02) << "of 0.1 s idle";
}

// A job with more tasks behind one with fewer: a worker that is late for the first must not run a task of the
// second.
TEST(ComputePool, EveryTaskRunsOnceWhenJobsGrow) {
  ComputePool pool(8);  // more threads than cores: some are always late
  for (int round = 0; round < 20000; ++round) {
    const int tasks = round % 2 == 0 ? 2 : 16;
    std::array<std::atomic<int>, 16> runs{};
    pool.parallel_for(tasks, [&](int task, int) { runs[task].fetch_add(1); });
    for (int task = 0; task < 16; ++task) ASSERT_EQ(runs[task].load(), task < tasks ? 1 : 0) << round;
  }
}

}  // namespace
}  // namespace lowkey::kernels
