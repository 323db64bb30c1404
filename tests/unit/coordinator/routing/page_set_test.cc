#include "coordinator/routing/page_set.h"

#include <gtest/gtest.h>

#include <list>
#include <random>

namespace lowkey::coordinator {
namespace {

Hash128 page(uint64_t i) {
  return {i, i * 0x9e3779b97f4a7c15ull};
}

TEST(PageSet, ForgetsTheOldest) {
  PageSet set;
  EXPECT_FALSE(set.contains(page(1)));
  EXPECT_FALSE(set.erase(page(1)));
  EXPECT_FALSE(set.forget_oldest());
  EXPECT_FALSE(set.use(page(1)));
  for (uint64_t i = 1; i <= 4; ++i) EXPECT_TRUE(set.insert(page(i)));
  EXPECT_FALSE(set.insert(page(1)));  // keeps its place
  EXPECT_TRUE(set.erase(page(2)));
  EXPECT_TRUE(set.insert(page(2)));  // comes behind the others
  EXPECT_TRUE(set.forget_oldest());
  EXPECT_TRUE(set.forget_oldest());
  EXPECT_FALSE(set.contains(page(1)));
  EXPECT_FALSE(set.contains(page(3)));
  EXPECT_TRUE(set.contains(page(2)));
  EXPECT_EQ(set.size(), 2u);
}

// Against a list, with collisions: few homes for many pages.
TEST(PageSet, IsASetInOrderOfArrivalAndUse) {
  PageSet set;
  std::list<Hash128> model;
  std::mt19937 random(5);
  for (int i = 0; i < 50'000; ++i) {
    const uint64_t pick = random() % 3000;
    const Hash128 any{pick, pick % 40};
    const auto at = std::find(model.begin(), model.end(), any);
    switch (random() % 6) {
      case 0:
      case 1:
        ASSERT_EQ(set.insert(any), at == model.end());
        if (at == model.end()) model.push_back(any);
        break;
      case 2:
        ASSERT_EQ(set.erase(any), at != model.end());
        if (at != model.end()) model.erase(at);
        break;
      case 3:
        if (model.size() < 500) break;
        ASSERT_TRUE(set.forget_oldest());
        model.pop_front();
        break;
      case 4:
        ASSERT_EQ(set.use(any), at != model.end());
        if (at != model.end()) model.splice(model.end(), model, at);
        break;
      default:
        ASSERT_EQ(set.contains(any), at != model.end());
    }
    ASSERT_EQ(set.size(), model.size());
  }
  for (const auto& known : model) EXPECT_TRUE(set.contains(known));
  while (!model.empty()) {
    ASSERT_TRUE(set.contains(model.front()));
    ASSERT_TRUE(set.forget_oldest());
    ASSERT_FALSE(set.contains(model.front()));
    model.pop_front();
  }
}

}  // namespace
}  // namespace lowkey::coordinator
