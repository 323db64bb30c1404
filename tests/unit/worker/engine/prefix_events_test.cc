#include "worker/engine/prefix_events.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "tests/unit/worker/engine/reading_replica.h"

namespace lowkey::worker {
namespace {

// What a receiver makes of the messages; fails on a gap.
struct Index {
  std::set<std::string> pages;
  uint64_t sequence = 0, resets = 0;

  void apply(const wire::PrefixEvents& events) {
    EXPECT_EQ(events.sequence(), sequence + 1);
    sequence = events.sequence();
    if (events.reset()) {
      pages.clear();
      ++resets;
    }
    for (size_t i = 0; i < events.added().size(); i += 16) pages.insert(events.added().substr(i, 16));
    for (size_t i = 0; i < events.removed().size(); i += 16) pages.erase(events.removed().substr(i, 16));
  }
};

TEST(PrefixEventQueue, AnOverflowSendsEverythingAnew) {
  PrefixEventQueue queue(10);
  Index index;
  std::vector<Hash128> all;
  const auto take = [&] {
    queue.take([&] { return all; }, [&](const wire::PrefixEvents& events) { index.apply(events); });
  };
  for (uint64_t i = 0; i < 10; ++i) {
    all.push_back({i, i});
    queue.changed(all.back(), true);
  }
  queue.changed(all[3], false);
  queue.changed(all[3], true);
  take();
  EXPECT_EQ(index.pages.size(), 10u);
  EXPECT_EQ(index.resets, 0u);
  EXPECT_TRUE(queue.empty());
  for (uint64_t i = 100; i < 200'000; ++i) {
    all.push_back({i, i});
    queue.changed(all.back(), true);
  }
  take();
  EXPECT_EQ(index.pages.size(), all.size());
  EXPECT_EQ(index.resets, 1u);
  EXPECT_GT(index.sequence, 3u) << "in messages of bounded size";
}

TEST(PrefixEvents, TellWhatCanBeFoundOnTheDevice) {
  EngineReplicaOptions options = reading_replica();
  options.kv_bytes = 64 << 10;
  EngineReplica replica(options);
  std::mt19937 random(1);
  Index index;
  size_t seen = 0;
  const auto read = [&] {
    for (; seen < replica.prefix_events().size(); ++seen) index.apply(replica.prefix_events()[seen]);
  };
  for (int i = 0; i < 40; ++i) {
    replica.complete(random_prompt(random, 100, 90), 3);
    read();
    const uint64_t pages = static_cast<uint64_t>(replica.metric(0, "lowkey_kv_pages", "state=\"evictable\"") +
                                                 replica.metric(0, "lowkey_kv_pages", "state=\"used\""));
    EXPECT_GE(index.pages.size(), 6u);
    EXPECT_LE(index.pages.size(), pages + 7) << "evicted pages are taken back";
  }
  EXPECT_GT(replica.metric(0, "lowkey_prefix_events_total", "removed"), 0);
  const std::set<std::string> before = index.pages;
  replica.engine().resync_prefixes();
  replica.step();
  read();
  EXPECT_EQ(index.pages, before);
  EXPECT_EQ(index.resets, 1u);
}

}  // namespace
}  // namespace lowkey::worker
