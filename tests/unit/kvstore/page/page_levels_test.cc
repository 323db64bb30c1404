// Pages of different numbers of levels: slabs, dropping and growing, what gives way first.
#include <gtest/gtest.h>

#include <set>
#include <utility>

#include "tests/unit/kvstore/page/levelled_pool.h"

namespace lowkey::kvstore {
namespace {

// Which of the published pages give way to others first.
std::vector<int> first_evicted(Levelled& f, int pages, size_t count) {
  std::vector<int> gone;
  f.pool.on_change = [&](const Hash128& identity, bool added) {
    for (int i = 0; i < pages && !added; ++i)
      if (identity == identity_of(i)) gone.push_back(i);
  };
  std::vector<PageRef> held;
  while (gone.size() < count) held.push_back(*f.pool.allocate(false));
  f.pool.on_change = nullptr;
  gone.resize(count);
  return gone;
}

TEST(PageLevels, APageHasSlabsOfItsLeadingLevels) {
  Levelled f;
  const kernels::PageLayout& layout = f.memory->layout();
  const PageRef page = *f.pool.allocate(true, 1);
  ASSERT_EQ(page.slabs().size(), 4u);
  EXPECT_EQ(page.levels(), 1);
  EXPECT_NE(page.slabs()[0], kNoSlab);
  EXPECT_EQ(page.slabs()[1], kNoSlab);
  EXPECT_EQ(page.slabs()[2], kNoSlab);
  EXPECT_NE(page.slabs()[3], kNoSlab) << "the sink";
  const uint64_t header = kernels::kPageHeaderBytes;
  EXPECT_EQ(f.pool.ledger().used, header + layout.slab_bytes[0] + layout.slab_bytes[3]);

  uint32_t version = page.version();
  ASSERT_TRUE(f.pool.grow(page, 3));
  EXPECT_EQ(page.levels(), 1) << "nothing has landed yet";
  EXPECT_NE(page.version(), std::exchange(version, page.version()));
  EXPECT_FALSE(f.pool.can_drop_level(page.id())) << "data is on its way";
  f.pool.set_levels(page, 3, /*lossy=*/true);
  EXPECT_EQ(page.levels(), 3);
  EXPECT_TRUE(page.lossy());
  EXPECT_NE(page.version(), std::exchange(version, page.version()));
  EXPECT_EQ(f.pool.ledger().used, header + f.pool.page_bytes(true));

  f.pool.drop_level(page.id());
  EXPECT_EQ(page.levels(), 2);
  EXPECT_EQ(page.slabs()[2], kNoSlab);
  EXPECT_NE(page.version(), version);
  EXPECT_EQ(f.pool.ledger().used, header + f.pool.page_bytes(true) - layout.slab_bytes[2]);
}

TEST(PageLevels, GrowingTakesAllOrNothing) {
  Levelled f;
  std::vector<PageRef> small;
  while (auto page = f.pool.allocate(false, 2)) small.push_back(std::move(*page));
  while (auto page = f.pool.allocate(false, 1)) small.push_back(std::move(*page));
  const Ledger before = f.pool.ledger();
  EXPECT_FALSE(f.pool.grow(small.back(), 3));
  EXPECT_EQ(small.back().slabs()[2], kNoSlab);
  EXPECT_EQ(f.pool.ledger().used, before.used);
}

TEST(PageLevels, SlabsWhoseDataNeverCameGoWithTheLastReference) {
  Levelled f;
  PageRef page = *f.pool.allocate(false, 3);
  f.pool.set_levels(page, 2);
  f.pool.publish(page, identity_of(0), tokens_of(0));
  page = {};
  page = *f.pool.find(identity_of(0), tokens_of(0));
  EXPECT_EQ(page.slabs()[2], kNoSlab);
  EXPECT_EQ(f.pool.ledger().used,
            kernels::kPageHeaderBytes + f.pool.page_bytes(false) - f.memory->layout().slab_bytes[2]);
}

TEST(PageLevels, IdlePagesBecomeCoarseBeforeAnyIsEvicted) {
  Levelled f(256 * kKiB, {.drop_levels = true});
  const int pages = f.publish_all();
  EXPECT_EQ(f.pool.evictable_pages(), static_cast<uint64_t>(pages));
  std::vector<PageRef> held;
  while (f.pool.evictions() == 0) held.push_back(*f.pool.allocate(false));
  EXPECT_GE(held.size(), static_cast<size_t>(pages) / 4) << "two of three levels were given up";
  EXPECT_GT(f.pool.idle_level_drops(), static_cast<uint64_t>(pages));
  for (int i = 1; i < pages; ++i) {
    const auto page = f.pool.find(identity_of(i), tokens_of(i));
    EXPECT_TRUE(!page || page->levels() == 1) << i;
  }
}

TEST(PageLevels, TheLeastRecentlyUsedPageBecomesCoarseFirst) {
  Levelled f(256 * kKiB, {.drop_levels = true, .min_levels = 2});
  const int pages = f.publish_all();
  f.pool.find(identity_of(0), tokens_of(0));  // now the newest
  const auto levels = [&](int i) {
    const auto page = f.pool.find(identity_of(i), tokens_of(i));
    return page ? page->levels() : 0;
  };
  const PageRef one = *f.pool.allocate(false);
  EXPECT_EQ(f.pool.evictions(), 0u);
  EXPECT_EQ(levels(1), 2);
  EXPECT_EQ(levels(2), 2);
  EXPECT_EQ(levels(pages - 1), 3);
  EXPECT_EQ(levels(0), 3);
  std::vector<PageRef> held;
  while (f.pool.evictable_pages() > 10) held.push_back(*f.pool.allocate(false));
  int coarse = 0;
  for (int i = 0; i < pages; ++i) {
    EXPECT_NE(levels(i), 1) << "below the floor";
    coarse += levels(i) == 2;
  }
  EXPECT_GT(coarse, 0);
}

TEST(PageLevels, PagesThatAStoreHasAreEvictedFirst) {
  Levelled f;
  const int pages = f.publish_all();
  for (const int stored : {5, 3, 7, 4}) f.pool.set_stored(identity_of(stored), true);
  f.pool.set_stored(identity_of(4), false);
  EXPECT_EQ(first_evicted(f, pages, 6), (std::vector<int>{3, 5, 7, 0, 1, 2}));
}

TEST(PageLevels, WhenTheStoresAreOthersAgeAloneDecides) {
  Levelled f;
  const int pages = static_cast<int>(f.fill().size());
  for (int i = 0; i < pages; ++i) {
    auto page = f.pool.allocate(false);
    f.pool.publish(*page, identity_of(i), tokens_of(i), 16 * i);
    if (i == 2) f.pool.set_levels(*page, 3, true);
  }
  for (const int stored : {5, 3, 7}) f.pool.set_stored(identity_of(stored), true);
  const auto unstored = [&](size_t most) {
    std::set<uint64_t> found;
    for (PageId next = 0; next < f.memory->max_pages();) {
      const auto part = f.pool.unstored(&next, most);
      EXPECT_LE(part.size(), most);
      for (const auto& page : part) {
        const uint64_t i = page.first_token / 16;
        EXPECT_EQ(page.identity, identity_of(static_cast<int>(i)));
        EXPECT_TRUE(f.pool.find(page.page, page.identity).has_value());
        EXPECT_TRUE(found.insert(i).second);
      }
    }
    return found;
  };
  const auto before = unstored(3);
  EXPECT_EQ(before.size(), static_cast<size_t>(pages) - 4) << "neither stored nor lossy";
  for (const uint64_t not_there : {2, 3, 5, 7}) EXPECT_FALSE(before.contains(not_there));
  f.pool.forget_stored();
  EXPECT_EQ(unstored(1000).size(), static_cast<size_t>(pages) - 1);
}

TEST(PageLevels, StoredPagesGoInTheirTurnOnceThatIsForgotten) {
  Levelled f;
  const int pages = f.publish_all();
  for (const int stored : {5, 3, 7}) f.pool.set_stored(identity_of(stored), true);
  const Ledger before = f.pool.ledger();
  f.pool.forget_stored();
  EXPECT_EQ(f.pool.ledger().evictable, before.evictable);
  EXPECT_EQ(first_evicted(f, pages, 6), (std::vector<int>{0, 1, 2, 3, 4, 5}));
}

TEST(PageLevels, ABetterCopyTakesThePlaceOfACoarseOne) {
  Levelled f;
  std::vector<std::pair<Hash128, bool>> changes;
  f.pool.on_change = [&](const Hash128& identity, bool added) { changes.emplace_back(identity, added); };
  PageRef coarse = *f.pool.allocate(false, 1), middle = *f.pool.allocate(false, 2);
  PageRef lossy = *f.pool.allocate(false), full = *f.pool.allocate(false), late = *f.pool.allocate(false, 2);
  f.pool.set_levels(lossy, 3, true);
  const auto publish = [&](const PageRef& page) {
    return f.pool.publish(page, identity_of(0), tokens_of(0));
  };
  EXPECT_EQ(publish(coarse), coarse);
  EXPECT_EQ(publish(middle), middle);
  coarse = {};
  EXPECT_EQ(publish(lossy), lossy);
  EXPECT_EQ(publish(late), lossy) << "worse: the caller goes on with the other";
  EXPECT_EQ(publish(full), full);
  lossy = {}, middle = {}, late = {};
  EXPECT_EQ(f.pool.used_pages(), 1u);
  EXPECT_EQ(*f.pool.find(identity_of(0), tokens_of(0)), full);
  EXPECT_EQ(changes.size(), 1u) << "it was findable all the time";
  // An idle one gives its memory at once.
  f.pool.drop_level(full.id());
  full = {};
  const PageRef again = *f.pool.allocate(false);
  EXPECT_EQ(publish(again), again);
  EXPECT_EQ(f.pool.evictable_pages(), 0u);
}

}  // namespace
}  // namespace lowkey::kvstore
