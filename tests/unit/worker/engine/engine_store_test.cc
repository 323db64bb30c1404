// Prefixes that were pushed off the device: back from a store, or computed again.
#include <gtest/gtest.h>

#include <functional>
#include <mutex>
#include <random>
#include <thread>

#include "tests/unit/worker/engine/reading_replica.h"

namespace lowkey::worker {
namespace {

bool wait_for(const std::function<bool()>& condition) {
  const Deadline deadline = Deadline::in(std::chrono::seconds(20));
  while (!condition() && !deadline.passed()) std::this_thread::yield();
  return condition();
}

// Other prompts push the first one's pages off the device.
void push_out(EngineReplica& replica, std::mt19937& random) {
  for (int i = 0; i < 30; ++i) replica.submit(random_prompt(random, 200), 2);
  replica.run();
}

TEST(EngineStore, ADroppedPrefixComesBackFromTheStore) {
  for (const int sink : {0, 4}) {
    EngineReplicaOptions options = small(2);
    options.spec.sink_tokens = sink;
    options.kv_bytes = 128 << 10;
    options.store = std::make_shared<MemoryStore>();
    EngineReplica replica(options);
    std::mt19937 random(6);
    const auto prompt = random_prompt(random, 300);
    const auto first = replica.complete(prompt, 20);
    EXPECT_EQ(first, CacheReadingModel::answer(prompt, 20));
    push_out(replica, random);
    const uint64_t again = replica.submit(prompt, 20);
    replica.run();
    EXPECT_EQ(replica.answer(again).tokens, first);
    EXPECT_EQ(replica.answer(again).cached, 288u);
    EXPECT_GT(replica.answer(again).cached_store, 200u);
  }
}

TEST(EngineStore, DamagedOrMissingPagesAreRecomputed) {
  EngineReplicaOptions options = small(2);
  options.kv_bytes = 128 << 10;
  options.store = std::make_shared<MemoryStore>();
  EngineReplica replica(options);
  std::mt19937 random(7);
  const auto prompt = random_prompt(random, 300);
  const auto expected = CacheReadingModel::answer(prompt, 20);
  const std::vector<std::function<void()>> harms{[&] { options.store->damage_all(); },
                                                 [&] { options.store->forget_rank(1); },
                                                 [&] { options.store->forget_all(); }};
  for (const auto& harm : harms) {
    EXPECT_EQ(replica.complete(prompt, 20), expected);
    push_out(replica, random);
    harm();
    const uint64_t again = replica.submit(prompt, 20);
    replica.run();
    EXPECT_EQ(replica.answer(again).tokens, expected);
    EXPECT_EQ(replica.answer(again).cached_store, 0u);
    push_out(replica, random);
    const uint64_t third = replica.submit(prompt, 20);
    replica.run();
    EXPECT_GT(replica.answer(third).cached_store, 0u) << "after a miss the page is written again";
    EXPECT_EQ(replica.answer(third).tokens, expected);
    push_out(replica, random);
  }
}

TEST(EngineStore, WaitingForTheStoreHoldsUpNobodyElseAndEnds) {
  EngineReplicaOptions options = small(2);
  options.kv_bytes = 256 << 10;
  options.store = std::make_shared<MemoryStore>();
  options.engine.restore_wait = std::chrono::milliseconds(50);
  std::mutex mutex;
  std::vector<std::function<void()>> held;
  bool hold = false;
  options.hold_restore = [&](int, bool, std::function<void()> serve) {
    std::lock_guard lock(mutex);
    if (hold) held.push_back(std::move(serve));
    return hold;
  };
  EngineReplica replica(options);
  std::mt19937 random(8);
  const auto prompt = random_prompt(random, 300);
  replica.complete(prompt, 5);
  for (int i = 0; i < 3; ++i) push_out(replica, random);
  {
    std::lock_guard lock(mutex);
    hold = true;
  }
  const uint64_t restoring = replica.submit(prompt, 5);
  const uint64_t other = replica.submit({1, 2, 3}, 5);  // has no page to restore
  replica.run_until(other);
  EXPECT_EQ(replica.answer(other).tokens, CacheReadingModel::answer({1, 2, 3}, 5));
  replica.run_until(restoring);  // gives up after the wait, and computes
  EXPECT_EQ(replica.answer(restoring).tokens, CacheReadingModel::answer(prompt, 5));
  EXPECT_EQ(replica.answer(restoring).cached_store, 0u);
  const auto asked = [&] {
    std::lock_guard lock(mutex);
    return held.size();
  };
  ASSERT_TRUE(wait_for([&] { return asked() == 2; })) << "one restore on each of two ranks";
  for (int i = 0; i < 20; ++i) replica.run_until(replica.submit(random_prompt(random, 60), 2));
  EXPECT_EQ(asked(), 2u) << "a store that owes an answer is not waited for again";
  while (replica.step()) {
  }
  EXPECT_GT(replica.engine().state().kv_bytes_used, 0u) << "late transfers still own their pages";
  {
    std::lock_guard lock(mutex);
    hold = false;
  }
  for (auto& serve : held) serve();
  while (replica.step()) {
  }
  replica.check_all_returned();
}

}  // namespace
}  // namespace lowkey::worker
