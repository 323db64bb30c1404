#include "base/bounded_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <thread>
#include <vector>

namespace lowkey {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(BoundedQueue, RefusesWhenFull) {
  BoundedQueue<std::unique_ptr<int>> queue(2);
  EXPECT_TRUE(queue.try_push(std::make_unique<int>(1)));
  EXPECT_TRUE(queue.try_push(std::make_unique<int>(2)));
  EXPECT_FALSE(queue.try_push(std::make_unique<int>(3)));
  EXPECT_EQ(**queue.try_pop(), 1);
  EXPECT_TRUE(queue.try_push(std::make_unique<int>(4)));
  EXPECT_EQ(**queue.try_pop(), 2);
  EXPECT_EQ(**queue.try_pop(), 4);
  EXPECT_FALSE(queue.try_pop());
}

TEST(BoundedQueue, PopEndsAtItsDeadline) {
  BoundedQueue<int> queue(1);
  auto begin = Clock::now();
  EXPECT_FALSE(queue.pop(Deadline::in(milliseconds(20))));
  EXPECT_GE(Clock::now() - begin, milliseconds(20));
}

TEST(BoundedQueue, CloseWakesReadersAndKeepsWhatIsQueued) {
  BoundedQueue<int> queue(4);
  std::thread reader([&] {
    auto deadline = Deadline::in(seconds(20));
    int sum = 0;
    while (auto item = queue.pop(deadline)) sum += *item;
    EXPECT_EQ(sum, 3);
    EXPECT_FALSE(deadline.passed());
  });
  EXPECT_TRUE(queue.try_push(1));
  EXPECT_TRUE(queue.try_push(2));
  queue.close();
  EXPECT_FALSE(queue.try_push(9));
  reader.join();
}

TEST(BoundedQueue, NothingIsLostBetweenThreads) {
  BoundedQueue<int> queue(8);
  constexpr int kItems = 20000;
  auto deadline = Deadline::in(seconds(60));
  std::vector<long> sums(2);
  std::vector<std::thread> readers;
  for (auto& sum : sums)
    readers.emplace_back([&queue, &sum, deadline] {
      while (auto item = queue.pop(deadline)) sum += *item;
    });
  for (int i = 0; i < kItems && !deadline.passed();)
    if (queue.try_push(i)) ++i;
  queue.close();
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), 0L), long{kItems} * (kItems - 1) / 2);
}

}  // namespace
}  // namespace lowkey
