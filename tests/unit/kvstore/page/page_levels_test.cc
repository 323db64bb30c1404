// Pages of different numbers of levels: slabs, dropping and growing, what gives way first.
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <unordered_set>

#include "base/bytes.h"
#include "kvstore/page/page_pool.h"
#include "tests/unit/kvstore/page/page_pool_support.h"

namespace lowkey::kvstore {
namespace {

// Three levels of different sizes and a sink.
kernels::PageLayout levelled_layout() {
  kernels::PageSpec spec;
  spec.page_tokens = 16;
  spec.sink_tokens = 4;
  spec.num_levels = 3;
  for (kernels::VectorSpec* vector : {&spec.key, &spec.value}) {
    vector->quantizer = kernels::Quantizer::kEmbedded;
    vector->bits = {{4, 1, 2}};
  }
  const kernels::CacheShape shape{
      .num_banks = 2, .num_kv_heads = 1, .head_dim = 16, .dtype = kernels::DType::kF32};
  return std::move(kernels::PageLayout::make(spec, shape)).value();
}

struct Levelled {
  explicit Levelled(uint64_t budget = 256 * kKiB, PagePool::Pressure pressure = {})
      : memory(std::move(PageMemory::make(levelled_layout(), budget)).value()), pool(*memory) {
    pool.set_pressure(pressure);
  }
  std::vector<PageRef> fill() {
    std::vector<PageRef> pages;
    while (auto page = pool.allocate(false)) pages.push_back(std::move(*page));
    return pages;
  }
  std::unique_ptr<PageMemory> memory;
  PagePool pool;
};

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
  const int pages = static_cast<int>(f.fill().size());
  for (int i = 0; i < pages; ++i) f.pool.publish(*f.pool.allocate(false), identity_of(i), tokens_of(i));
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
  const int pages = static_cast<int>(f.fill().size());
  for (int i = 0; i < pages; ++i) f.pool.publish(*f.pool.allocate(false), identity_of(i), tokens_of(i));
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
  const int pages = static_cast<int>(f.fill().size());
  for (int i = 0; i < pages; ++i) f.pool.publish(*f.pool.allocate(false), identity_of(i), tokens_of(i));
  for (const int stored : {5, 3, 7, 4}) f.pool.set_stored(identity_of(stored), true);
  f.pool.set_stored(identity_of(4), false);
  std::vector<PageRef> held;
  std::vector<int> gone;
  f.pool.on_change = [&](const Hash128& identity, bool added) {
    for (int i = 0; i < pages && !added; ++i)
      if (identity == identity_of(i)) gone.push_back(i);
  };
  while (gone.size() < 6) held.push_back(*f.pool.allocate(false));
  EXPECT_EQ(std::vector<int>(gone.begin(), gone.begin() + 6), (std::vector<int>{3, 5, 7, 0, 1, 2}));
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
  const int pages = static_cast<int>(f.fill().size());
  for (int i = 0; i < pages; ++i) f.pool.publish(*f.pool.allocate(false), identity_of(i), tokens_of(i));
  for (const int stored : {5, 3, 7}) f.pool.set_stored(identity_of(stored), true);
  const Ledger before = f.pool.ledger();
  f.pool.forget_stored();
  EXPECT_EQ(f.pool.ledger().evictable, before.evictable);
  std::vector<PageRef> held;
  std::vector<int> gone;
  f.pool.on_change = [&](const Hash128& identity, bool added) {
    for (int i = 0; i < pages && !added; ++i)
      if (identity == identity_of(i)) gone.push_back(i);
  };
  while (gone.size() < 6) held.push_back(*f.pool.allocate(false));
  EXPECT_EQ(std::vector<int>(gone.begin(), gone.begin() + 6), (std::vector<int>{0, 1, 2, 3, 4, 5}));
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

// Random operations beside a model of every page: its slabs, its levels, and the order in which idle ones
// give.
class PoolModel {
 public:
  PoolModel(uint32_t seed, PagePool::Pressure pressure)
      : random_(seed), pressure_(pressure), f_(192 * kKiB, pressure) {
    f_.pool.on_change = [this](const Hash128& identity, bool added) {
      EXPECT_EQ(findable_.contains(identity), !added);
      added ? (void)findable_.insert(identity) : (void)findable_.erase(identity);
      if (!added) follow_eviction(identity);
    };
  }
  ~PoolModel() { f_.pool.on_change = nullptr; }

  void step() {
    const bool any = !held_.empty();
    switch (random_() % 10) {
      case 0:
      case 1:
        return allocate();
      case 2:
      case 3:
        return any ? publish(pick()) : allocate();
      case 4:
        return find();
      case 5:
        return any ? grow(pick()) : allocate();
      case 6:
        return any ? drop(pick()) : allocate();
      case 7:
        return set_stored();
      case 8:
        return use_tails();
      default:
        for (int i = random_() % 5; i > 0 && !held_.empty(); --i) release();
    }
  }

  // Bytes, page by page.
  void check() {
    const kernels::PageLayout& layout = f_.memory->layout();
    uint64_t used = tails_.size() * layout.tail_bytes, evictable = 0;
    for (const auto& [id, page] : pages_) {
      uint64_t& bytes = page.references > 0 ? used : evictable;
      bytes += kernels::kPageHeaderBytes + (page.sink ? layout.slab_bytes[3] : 0);
      for (int level = 0; level < page.slabs; ++level) bytes += layout.slab_bytes[level];
    }
    ASSERT_EQ(f_.pool.ledger().used, used);
    ASSERT_EQ(f_.pool.ledger().evictable, evictable);
    expect_sums(f_.pool);
    ASSERT_EQ(f_.pool.evictable_pages(), idle_.size());
    ASSERT_EQ(f_.pool.identities().size(), findable_.size());
    for (const PageRef& ref : held_) {
      const Page& page = pages_.at(ref.id());
      ASSERT_EQ(ref.levels(), page.levels);
      ASSERT_EQ(ref.lossy(), page.lossy);
      for (int level = 0; level < 3; ++level) ASSERT_EQ(ref.slabs()[level] != kNoSlab, level < page.slabs);
    }
  }

  void finish() {
    while (!held_.empty()) release();
    tails_.clear();
    check();
    ASSERT_EQ(f_.pool.used_pages(), 0u);
    EXPECT_GT(f_.pool.evictions(), 0u);
    EXPECT_EQ(f_.pool.idle_level_drops() > 0, pressure_.drop_levels);
  }

 private:
  struct Page {
    int slabs, levels;
    bool sink, lossy = false, stored = false;
    int content = -1;  // published
    int references = 1;
  };

  PageRef& pick() {
    std::swap(held_[random_() % held_.size()], held_.back());
    return held_.back();
  }
  static bool has_sink(int content) { return content % 2 == 1; }

  // What the pool says that it took from idle pages, taken from the model's.
  void follow_drops() {
    for (; drops_ < f_.pool.idle_level_drops(); ++drops_) {
      const auto first = std::find_if(idle_.begin(), idle_.end(),
                                      [&](PageId id) { return pages_.at(id).levels > pressure_.min_levels; });
      ASSERT_NE(first, idle_.end());
      --pages_.at(*first).levels;
      --pages_.at(*first).slabs;
    }
  }
  void follow_eviction(const Hash128& identity) {
    follow_drops();
    auto first = std::find_if(idle_.begin(), idle_.end(), [&](PageId id) { return pages_.at(id).stored; });
    if (first == idle_.end()) first = idle_.begin();
    ASSERT_EQ(identity, identity_of(pages_.at(*first).content));
    by_content_.erase(pages_.at(*first).content);
    pages_.erase(*first);
    idle_.erase(first);
  }

  void allocate() {
    const int levels = static_cast<int>(random_() % 4), count = levels == 0 ? 3 : levels;
    const bool sink = random_() % 2 == 0;
    auto ref = f_.pool.allocate(sink, levels);
    follow_drops();
    if (!ref) {
      ASSERT_TRUE(idle_.empty());
      return release();
    }
    Page page{.slabs = count, .levels = count, .sink = sink};
    if (random_() % 3 == 0) {
      page.levels = static_cast<int>(random_() % (count + 1));
      page.lossy = random_() % 4 == 0;
      f_.pool.set_levels(*ref, page.levels, page.lossy);
    }
    ASSERT_TRUE(pages_.emplace(ref->id(), page).second);
    held_.push_back(std::move(*ref));
  }

  void publish(const PageRef& ref) {
    Page& page = pages_.at(ref.id());
    const int content = 2 * static_cast<int>(random_() % 40) + page.sink;
    if (page.content >= 0 || page.levels == 0) return;
    const PageRef now = f_.pool.publish(ref, identity_of(content), tokens_of(content));
    const auto other = by_content_.find(content);
    if (other == by_content_.end()) {
      ASSERT_EQ(now, ref);
    } else {
      Page& old = pages_.at(other->second);
      const bool full = page.levels == 3 && !page.lossy, old_full = old.levels == 3 && !old.lossy;
      const bool better = full != old_full            ? full
                          : page.levels != old.levels ? page.levels > old.levels
                                                      : old.lossy && !page.lossy;
      ASSERT_EQ(now.id(), better ? ref.id() : other->second);
      if (!better) {  // a look at it made it the newest
        if (old.references == 0) idle_.remove(other->second), idle_.push_back(other->second);
        return;
      }
      old.content = -1, old.stored = false;
      if (old.references == 0) {
        idle_.remove(other->second);
        pages_.erase(other->second);
      }
    }
    page.content = content;
    by_content_[content] = ref.id();
  }

  void find() {
    const int content = static_cast<int>(random_() % 80);
    auto ref = f_.pool.find(identity_of(content), tokens_of(content));
    ASSERT_EQ(ref.has_value(), by_content_.contains(content));
    if (!ref) return;
    ASSERT_EQ(ref->id(), by_content_.at(content));
    if (pages_.at(ref->id()).references++ == 0) idle_.remove(ref->id());
    held_.push_back(std::move(*ref));
  }

  void grow(const PageRef& ref) {
    Page& page = pages_.at(ref.id());
    const int levels = 1 + static_cast<int>(random_() % 3);
    const uint32_t version = ref.version();
    const bool grown = f_.pool.grow(ref, levels);
    follow_drops();
    ASSERT_TRUE(grown || idle_.empty());
    ASSERT_EQ(ref.version() != version, grown && levels > page.slabs);
    if (grown) page.slabs = std::max(page.slabs, levels);
    if (random_() % 2 == 0) return;
    page.levels = 1 + static_cast<int>(random_() % page.slabs);
    f_.pool.set_levels(ref, page.levels, page.lossy);
  }

  void drop(const PageRef& ref) {
    Page& page = pages_.at(ref.id());
    ASSERT_EQ(f_.pool.can_drop_level(ref.id()), page.levels > 1 && page.levels == page.slabs);
    if (f_.pool.can_drop_level(ref.id())) {
      f_.pool.drop_level(ref.id());
      --page.levels, --page.slabs;
    } else if (page.levels > 0) {
      f_.pool.trim(ref);
      page.slabs = page.levels;
    }
  }

  void set_stored() {
    if (random_() % 32 == 0) {
      f_.pool.forget_stored();
      for (auto& [id, page] : pages_) page.stored = false;
      return;
    }
    const int content = static_cast<int>(random_() % 80);
    const bool stored = random_() % 2 == 0;
    f_.pool.set_stored(identity_of(content), stored);
    if (by_content_.contains(content)) pages_.at(by_content_.at(content)).stored = stored;
  }

  void use_tails() {
    if (random_() % 2 == 0) return tails_.clear();
    auto tail = f_.pool.allocate_tail();
    follow_drops();
    if (tail && tails_.size() < 4) tails_.push_back(std::move(*tail));
  }

  void release() {
    if (held_.empty()) return;
    const PageId id = pick().id();
    held_.pop_back();
    Page& page = pages_.at(id);
    if (--page.references > 0) return;
    if (page.content < 0) {
      pages_.erase(id);
      return;
    }
    page.slabs = page.levels;
    idle_.push_back(id);
  }

  std::mt19937 random_;
  PagePool::Pressure pressure_;
  Levelled f_;
  std::vector<PageRef> held_;
  std::vector<TailRef> tails_;
  std::map<PageId, Page> pages_;
  std::map<int, PageId> by_content_;
  std::list<PageId> idle_;  // oldest first
  uint64_t drops_ = 0;      // followed
  std::unordered_set<Hash128> findable_;
};

TEST(PageLevels, RandomUseAgreesWithAModel) {
  const PagePool::Pressure kinds[] = {{}, {.drop_levels = true}, {.drop_levels = true, .min_levels = 2}};
  for (uint32_t seed = 0; seed < 6; ++seed) {
    PoolModel model(seed, kinds[seed % 3]);
    for (int step = 0; step < 20000; ++step) {
      model.step();
      model.check();
      if (testing::Test::HasFatalFailure() || testing::Test::HasNonfatalFailure())
        FAIL() << "seed " << seed << ", step " << step;
    }
    model.finish();
  }
}

}  // namespace
}  // namespace lowkey::kvstore
