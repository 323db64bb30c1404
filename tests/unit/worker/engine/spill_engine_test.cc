// What the engine believes of its pages' copies: stored is what a store has, and nothing else.
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "tests/unit/worker/engine/reading_replica.h"

namespace lowkey::worker {
namespace {

constexpr uint32_t kPageTokens = 16;

class SpillEngine : public ::testing::Test {
 protected:
  SpillEngine() {
    options.kv_bytes = 128 << 10;
    options.store = store;
    options.stores = [this] { return stores; };
    options.fail_spill = [this](int rank, const kvstore::PageWrite& page) {
      EXPECT_NE(page.header.tokens_hash, 0u);
      std::lock_guard lock(mutex);
      if (rank == 0) ++offered[page.header.identity];
      if (refuses) refused.insert(page.header.identity);
      return refused.contains(page.header.identity);
    };
  }
  std::vector<int32_t> prompt(int length) { return random_prompt(random, length); }
  void settle(EngineReplica& replica) {
    while (replica.step()) {
    }
  }

  std::mt19937 random{1};
  std::shared_ptr<MemoryStore> store = std::make_shared<MemoryStore>();
  uint64_t stores = 1;
  std::mutex mutex;  // ranks spill on their own threads
  bool refuses = false;
  std::set<Hash128> refused;          // for good
  std::map<Hash128, size_t> offered;  // how often
  EngineReplicaOptions options = small();
};

TEST_F(SpillEngine, PagesThatNoStoreTookOutliveThoseThatOneHas) {
  EngineReplica replica(options);
  refuses = true;
  const auto first = prompt(160);
  const auto expected = replica.complete(first, 2);
  EXPECT_EQ(refused.size(), 10u);
  EXPECT_EQ(store->pages(), 0u);
  refuses = false;
  std::vector<std::vector<int32_t>> others;
  // Newer ones, of which the store has every page, and more of them than there is memory for.
  for (int i = 0; i < 20; ++i) replica.complete(others.emplace_back(prompt(160)), 2);
  EXPECT_GT(replica.metric(0, "lowkey_kv_evicted_pages_total"), 20);
  for (const Hash128& page : refused) EXPECT_EQ(offered[page], 2u) << "a second chance and no third";
  const uint64_t again = replica.submit(first, 2);
  replica.run();
  EXPECT_EQ(replica.answer(again).tokens, expected);
  EXPECT_EQ(replica.answer(again).cached, 144u) << "nothing of it was evicted";
  EXPECT_EQ(replica.answer(again).cached_store, 0u);
}

TEST_F(SpillEngine, WhatFailedOnceIsStoredWhenSomethingElseIs) {
  options.ranks = 2;
  EngineReplica replica(options);
  const auto refuse = [&](bool on) {
    std::lock_guard lock(mutex);
    refuses = on;
    refused.clear();
  };
  refuse(true);
  replica.complete(prompt(160), 2);
  refuse(false);
  replica.complete(prompt(32), 2);
  settle(replica);
  const Deadline deadline = Deadline::in(std::chrono::seconds(20));
  while (store->pages() < 24 && !deadline.passed()) std::this_thread::yield();  // the other rank's step
  EXPECT_EQ(store->pages(), 24u) << "of both prompts and ranks";
}

TEST_F(SpillEngine, PagesComputedWhileNoStoreIsThereAreOfferedWhenOneComes) {
  EngineReplica replica(options);
  stores = 0;
  const auto first = prompt(160);
  const auto expected = replica.complete(first, 2);
  EXPECT_TRUE(offered.empty());
  stores = 1;
  settle(replica);
  EXPECT_EQ(store->pages(), 10u);
  EXPECT_EQ(replica.metric(0, "lowkey_spill_queue_pages"), 0);
  settle(replica);
  for (const auto& [page, times] : offered) EXPECT_EQ(times, 1u);
  for (int i = 0; i < 20; ++i) replica.complete(prompt(160), 2);
  const uint64_t again = replica.submit(first, 2);
  replica.run();
  EXPECT_EQ(replica.answer(again).tokens, expected);
  EXPECT_EQ(replica.answer(again).cached_store, 144u);
}

TEST_F(SpillEngine, MarksDoNotOutliveTheStores) {
  EngineReplica replica(options);
  replica.complete(prompt(160), 2);
  settle(replica);
  ASSERT_EQ(store->pages(), 10u);
  store->forget_all();  // another store in the place of the one that was killed
  stores = 2;
  settle(replica);
  EXPECT_EQ(store->pages(), 10u);
}

// As when one of several stores is gone: its pages are scattered over every prefix.
TEST_F(SpillEngine, OnlyTheLostPagesOfAPrefixAreComputedAgain) {
  options.ranks = 2;
  options.kv_bytes = 256 << 10;
  EngineReplica replica(options);
  const auto first = prompt(305);  // 19 pages
  const auto expected = replica.complete(first, 20);
  const auto push_out = [&] {
    for (int i = 0; i < 30; ++i) replica.complete(prompt(160), 2);
  };
  push_out();
  const auto lost = [](const kernels::PageHeader& header) {
    const uint32_t page = header.first_token / kPageTokens;
    return page == 1 || page == 5 || page == 6 || page == 18;
  };
  store->forget_if(lost);
  const double missed = replica.metric(0, "lowkey_recomputed_tokens_total", "restore_miss");
  const uint64_t again = replica.submit(first, 20);
  replica.run();
  EXPECT_EQ(replica.answer(again).tokens, expected);
  EXPECT_EQ(replica.answer(again).cached, 15 * kPageTokens);
  EXPECT_EQ(replica.answer(again).cached_store, 15 * kPageTokens) << "those behind the gaps, too";
  EXPECT_EQ(replica.metric(0, "lowkey_recomputed_tokens_total", "restore_miss") - missed, 4 * kPageTokens);
  push_out();
  const uint64_t third = replica.submit(first, 20);
  replica.run();
  EXPECT_EQ(replica.answer(third).tokens, expected);
  EXPECT_EQ(replica.answer(third).cached_store, 19 * kPageTokens) << "they were stored again";
}

TEST_F(SpillEngine, APageThatIsEvictedBeforeItsTurnIsCounted) {
  options.kv_bytes = 64 << 10;
  options.engine.executor.staging_bytes = 4 << 10;  // a page or two at a time
  EngineReplica replica(options);
  for (int i = 0; i < 20; ++i) replica.submit(prompt(160), 2);
  replica.run();
  EXPECT_GT(replica.metric(0, "lowkey_kv_spill_pages_total", "outcome=\"evicted\""), 0);
}

}  // namespace
}  // namespace lowkey::worker
