// Random operations beside a model of every page: its slabs, its levels, and the order in which idle ones
// give.
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <random>
#include <unordered_set>

#include "tests/unit/kvstore/page/levelled_pool.h"

namespace lowkey::kvstore {
namespace {

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

TEST(PagePoolModel, RandomUseAgrees) {
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
