#include "worker/engine/spill_queue.h"

#include <gtest/gtest.h>

namespace lowkey::worker {
namespace {

PendingSpill spill(uint32_t n) {
  return {.page = n, .identity = {n, n}, .first_token = 16 * n};
}

std::vector<uint32_t> taken(SpillQueue& queue, size_t count = 100) {
  std::vector<uint32_t> pages;
  for (const PendingSpill& page : queue.take(count)) pages.push_back(page.page);
  return pages;
}

using Pages = std::vector<uint32_t>;

TEST(SpillQueue, APageIsStoredOnceAStoreHasIt) {
  SpillQueue queue(10, 10);
  for (const uint32_t n : {1, 2, 2, 1}) EXPECT_EQ(queue.offer(spill(n)), 0u);
  EXPECT_EQ(taken(queue, 1), (Pages{1}));
  queue.offer(spill(1));
  EXPECT_EQ(taken(queue), (Pages{2})) << "page 1 is on its way";
  EXPECT_FALSE(queue.is_stored({1, 1}));
  queue.ended({1, 1}, true);
  EXPECT_TRUE(queue.is_stored({1, 1}));
  queue.offer(spill(1));
  EXPECT_TRUE(queue.empty());
  EXPECT_TRUE(queue.forget_stored({1, 1}));
  queue.offer(spill(1));
  EXPECT_EQ(taken(queue), (Pages{1}));
}

TEST(SpillQueue, WhatFailedGetsASecondChanceAndNoThird) {
  SpillQueue queue(10, 10);
  for (const uint32_t n : {1, 2, 3}) queue.offer(spill(n));
  EXPECT_EQ(taken(queue), (Pages{1, 2, 3}));
  queue.ended({1, 1}, false);
  queue.ended({2, 2}, false);
  EXPECT_TRUE(queue.empty()) << "not while nothing can be stored";
  PendingSpill again = spill(2);
  again.page = 7;  // evicted and computed again
  queue.offer(again);
  EXPECT_TRUE(queue.empty());
  queue.ended({3, 3}, true);
  EXPECT_EQ(taken(queue), (Pages{1, 7}));
  queue.ended({1, 1}, false);
  queue.ended({2, 2}, true);
  EXPECT_TRUE(queue.empty());
  queue.offer(spill(1));
  EXPECT_EQ(taken(queue), (Pages{1})) << "who computes it again may offer it again";
}

TEST(SpillQueue, OtherStoresAreGivenEverythingAnew) {
  SpillQueue queue(10, 10);
  for (const uint32_t n : {1, 2, 3}) queue.offer(spill(n));
  EXPECT_EQ(taken(queue).size(), 3u);
  queue.ended({1, 1}, true);
  queue.ended({2, 2}, false);
  queue.stores_changed();
  EXPECT_FALSE(queue.is_stored({1, 1}));
  EXPECT_EQ(taken(queue), (Pages{2})) << "3 is still on its way";
  queue.ended({2, 2}, false);
  queue.ended({3, 3}, true);
  EXPECT_EQ(taken(queue), (Pages{2})) << "and has its second chance with them";
}

TEST(SpillQueue, TheOldestGiveWayAndAreCounted) {
  SpillQueue queue(3, 2);
  size_t gave_way = 0;
  for (uint32_t n = 1; n <= 5; ++n) gave_way += queue.offer(spill(n));
  EXPECT_EQ(gave_way, 2u);
  EXPECT_EQ(taken(queue), (Pages{3, 4, 5}));
  for (uint32_t n = 3; n <= 5; ++n) queue.ended({n, n}, false);
  queue.offer(spill(1));
  EXPECT_EQ(taken(queue), (Pages{1})) << "nothing is held against those that gave way";
  queue.skip({1, 1});
  queue.offer(spill(1));
  EXPECT_EQ(taken(queue), (Pages{1})) << "nor against those that were evicted";
  for (uint32_t n = 6; n <= 8; ++n) queue.mark_stored({n, n});
  EXPECT_FALSE(queue.is_stored({6, 6})) << "as many are remembered as there is room";
  EXPECT_TRUE(queue.is_stored({8, 8}));
}

}  // namespace
}  // namespace lowkey::worker
