#include "kvstore/page/page_pool.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "base/bytes.h"
#include "tests/unit/kvstore/page/page_pool_support.h"

namespace lowkey::kvstore {
namespace {

kernels::PageLayout layout_of(int sink_tokens) {
  kernels::PageSpec spec;
  spec.page_tokens = 16;
  spec.sink_tokens = sink_tokens;
  const kernels::CacheShape shape{
      .num_banks = 2, .num_kv_heads = 1, .head_dim = 16, .dtype = kernels::DType::kF32};
  return std::move(kernels::PageLayout::make(spec, shape)).value();
}

struct Fixture {
  explicit Fixture(uint64_t budget, int sink_tokens = 0)
      : memory(std::move(PageMemory::make(layout_of(sink_tokens), budget)).value()), pool(*memory) {}
  std::unique_ptr<PageMemory> memory;
  PagePool pool;
};

TEST(PageIdentity, DependsOnEverythingThatMakesThePage) {
  const Hash128 model{1, 2}, layout{3, 4};
  const Hash128 root = root_identity(model, layout, "");
  EXPECT_NE(root, root_identity(layout, model, ""));
  EXPECT_NE(root, root_identity(model, layout, "alice"));
  EXPECT_EQ(root, root_identity(model, layout, ""));
  const std::vector<int32_t> a{1, 2}, b{2, 1};
  EXPECT_NE(chain_hash(root, a), chain_hash(root, b));
  EXPECT_NE(chain_hash(chain_hash(root, a), b), chain_hash(chain_hash(root, b), b))
      << "the whole prefix counts";
  EXPECT_NE(rank_identity(root, 0, 2), rank_identity(root, 1, 2));
  EXPECT_NE(rank_identity(root, 0, 2), rank_identity(root, 0, 4));
}

TEST(PagePool, APageGoesBackWithItsLastReference) {
  Fixture f(256 * kKiB);
  PageRef a = *f.pool.allocate(false);
  PageRef b = a;
  EXPECT_EQ(f.pool.used_pages(), 1u);
  a = PageRef();
  EXPECT_EQ(f.pool.used_pages(), 1u);
  b = *f.pool.allocate(false);
  EXPECT_EQ(f.pool.used_pages(), 1u) << "assignment returned the first";
  b = PageRef();
  EXPECT_EQ(f.pool.ledger().used, 0u);
  EXPECT_EQ(f.pool.ledger().free, f.pool.ledger().capacity);
}

TEST(PagePool, PublishedPagesStayFindableUntilTheirMemoryIsNeeded) {
  Fixture f(256 * kKiB);
  int published = 0;
  for (; f.pool.ledger().evictable == 0 || f.pool.evictions() == 0; ++published) {
    const PageRef page = *f.pool.allocate(false);
    f.pool.publish(page, identity_of(published), tokens_of(published));
  }
  EXPECT_EQ(f.pool.used_pages(), 0u);
  EXPECT_FALSE(f.pool.find(identity_of(0), tokens_of(0))) << "the least recently used went first";
  ASSERT_TRUE(f.pool.find(identity_of(1), tokens_of(1)));
  {  // Looking at page 1 made it the newest: page 2 goes next.
    const PageRef page = *f.pool.allocate(false);
    EXPECT_TRUE(f.pool.contains(identity_of(1)));
    EXPECT_FALSE(f.pool.contains(identity_of(2)));
  }
  expect_sums(f.pool);
}

TEST(PagePool, AReferencedPageIsNeverEvicted) {
  Fixture f(128 * kKiB);
  PageRef kept = *f.pool.allocate(false);
  f.pool.publish(kept, identity_of(0), tokens_of(0));
  std::vector<PageRef> rest;
  while (auto page = f.pool.allocate(false)) rest.push_back(*page);
  EXPECT_TRUE(f.pool.find(identity_of(0), tokens_of(0)));
  EXPECT_EQ(f.pool.available_bytes(), 0u);
  EXPECT_FALSE(f.pool.allocate_tail());
  expect_sums(f.pool);
}

TEST(PagePool, AHashIsNotTrustedWithoutItsTokens) {
  Fixture f(256 * kKiB);
  PageRef page = *f.pool.allocate(false);
  f.pool.publish(page, identity_of(0), tokens_of(0));
  EXPECT_FALSE(f.pool.find(identity_of(0), tokens_of(1)));
  PageRef other = *f.pool.allocate(false);
  EXPECT_EQ(f.pool.publish(other, identity_of(0), tokens_of(1)), other) << "a collision shares nothing";
  EXPECT_TRUE(f.pool.find(identity_of(0), tokens_of(0)));
}

TEST(PagePool, EqualPagesPublishedTwiceBecomeOne) {
  Fixture f(256 * kKiB);
  PageRef first = *f.pool.allocate(false), second = *f.pool.allocate(false);
  EXPECT_EQ(f.pool.publish(first, identity_of(0), tokens_of(0)), first);
  second = f.pool.publish(second, identity_of(0), tokens_of(0));
  EXPECT_EQ(second, first);
  EXPECT_EQ(f.pool.used_pages(), 1u);
}

TEST(PagePool, OnlyTheFirstPageOfASequenceHasASink) {
  Fixture f(256 * kKiB, 4);
  EXPECT_EQ(f.pool.allocate(true)->slabs().size(), 2u);
  EXPECT_EQ(f.pool.allocate(false)->slabs().size(), 1u);
  EXPECT_EQ(f.pool.page_bytes(true) - f.pool.page_bytes(false), f.memory->layout().slab_bytes[1]);
}

TEST(PageMemory, TheForecastIsWhatASequenceTakes) {
  for (const int sink : {0, 4}) {
    Fixture f(512 * kKiB, sink);
    std::vector<PageRef> pages;
    const TailRef tail = *f.pool.allocate_tail();
    const int page_tokens = f.memory->layout().page_tokens;
    for (uint64_t tokens = 1; f.memory->fits(tokens, 0); ++tokens) {
      if (tokens % page_tokens == 0) {
        auto page = f.pool.allocate(pages.empty());
        ASSERT_TRUE(page) << tokens;
        pages.push_back(*page);
      }
      ASSERT_EQ(f.pool.ledger().used, f.memory->layout().bytes_for_tokens(tokens)) << tokens;
    }
    EXPECT_FALSE(f.pool.allocate(false)) << "what fits() promised is all there is";
    EXPECT_LE(f.memory->capacity_bytes(), 512 * kKiB);
  }
}

TEST(PageMemory, ABudgetTooSmallIsNamed) {
  const auto memory = PageMemory::make(layout_of(0), 1000);
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.error().code, Code::kUsage);
  EXPECT_NE(memory.error().message.find("kv-bytes: expected at least"), std::string::npos)
      << memory.error().message;
}

TEST(PagePool, RandomUseKeepsTheLedgerExact) {
  Fixture f(512 * kKiB, 4);
  std::mt19937 random(11);
  std::vector<PageRef> held;
  std::vector<TailRef> tails;
  for (int step = 0; step < 20000; ++step) {
    const int content = random() % 200;
    switch (random() % 6) {
      case 0:
        if (auto page = f.pool.allocate(random() % 4 == 0)) held.push_back(*page);
        break;
      case 1:
        if (auto page = f.pool.allocate(false))
          held.push_back(f.pool.publish(*page, identity_of(content), tokens_of(content)));
        break;
      case 2:
        if (auto page = f.pool.find(identity_of(content), tokens_of(content))) held.push_back(*page);
        break;
      case 3:
        if (auto tail = f.pool.allocate_tail(); tail && tails.size() < 4) tails.push_back(std::move(*tail));
        break;
      case 4:
        if (!tails.empty()) tails.pop_back();
        break;
      default:
        for (int i = random() % 4; i > 0 && !held.empty(); --i) {
          std::swap(held[random() % held.size()], held.back());
          held.pop_back();
        }
    }
    expect_sums(f.pool);
  }
  held.clear();
  tails.clear();
  EXPECT_EQ(f.pool.ledger().used, 0u);
}

}  // namespace
}  // namespace lowkey::kvstore
