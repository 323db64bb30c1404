// A disk that hangs: one lookup waits for it, and nobody after that one until a read has ended. Pages of
// which memory has less than the disk.
#include "kvstore/service/tiered_lookup.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include "monitoring/metrics.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/kvstore/tier/disk/disk_page.h"

namespace lowkey::kvstore {
namespace {

using std::chrono::milliseconds;

class TieredLookupTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kPool = 96 << 10;

  TieredLookupTest() {
    disk = std::move(DiskTier::open(
                         {.log = {.folder = folder.path().string(), .capacity = 1 << 20},
                          .threaded = false},  // it hangs until work()
                         [this](auto f) { boost::asio::post(io, std::move(f)); }, [](const auto&) {})
                         .value());
    lookups = std::make_shared<TieredLookup>(io, index, std::span(pool), *disk, metrics,
                                             TieredLookup::Options{.deadline = milliseconds(20)}, [] {});
    for (const uint64_t n : {1, 2, 3}) {
      const KnownPage page = known_page(n, 1000);
      EXPECT_TRUE(disk->write(page.header, views(page), [](const auto&) {}));
      work();  // the page's memory goes
    }
  }
  ~TieredLookupTest() override {
    disk.reset();
    lookups.reset();
  }
  void work() {
    disk->work();
    io.restart();
    io.poll();
  }
  // Pages found; -1: no answer yet.
  std::shared_ptr<int> look_up(uint64_t n) {
    auto found = std::make_shared<int>(-1);
    lookups->lookup(1, {known_identity(n)}, 0b11, false,
                    [found](const auto& pages) { *found = static_cast<int>(pages.size()); });
    return found;
  }
  void wait_for(const std::shared_ptr<int>& found) {
    const Deadline deadline = Deadline::in(std::chrono::seconds(20));
    io.restart();
    while (*found < 0 && !deadline.passed()) io.run_one_for(std::chrono::seconds(1));
  }

  testing::TempFolder folder;
  boost::asio::io_context io;
  monitoring::Metrics metrics{{{"role", "store"}, {"rank", "0"}}};
  std::vector<std::byte> pool = std::vector<std::byte>(kPool);
  StoreIndex index{{.capacity = kPool}};
  std::unique_ptr<DiskTier> disk;
  std::shared_ptr<TieredLookup> lookups;
};

TEST_F(TieredLookupTest, OneLookupWaitsForADiskThatHangs) {
  const auto first = look_up(1), beside = look_up(2);
  EXPECT_EQ(*first, -1) << "it waits";
  wait_for(first);
  EXPECT_EQ(*first, 0);
  EXPECT_TRUE(lookups->hangs());
  wait_for(beside);
  for (const uint64_t n : {1, 2, 3}) EXPECT_EQ(*look_up(n), 0) << "at once";
  EXPECT_EQ(lookups->waiting(), 0u);
  work();  // the reads end
  EXPECT_FALSE(lookups->hangs());
  EXPECT_EQ(*look_up(1), 1) << "what was read is in memory";
  const auto third = look_up(3);
  EXPECT_EQ(*third, -1) << "worth waiting for again";
  work();
  EXPECT_EQ(*third, 1);
}

// Written by somebody who has lost the upper level, while the page was on disk alone.
TEST_F(TieredLookupTest, ACoarsePageInMemoryDoesNotHideTheWholeOneOnDisk) {
  const KnownPage coarse = known_page(1, 1000, 1);
  const auto reserved = index.reserve(7, known_identity(1), std::array<uint32_t, 1>{1000}, Clock::now());
  ASSERT_EQ(reserved.grant, StoreIndex::Grant::kGranted);
  std::ranges::copy(coarse.slabs[0], pool.begin() + static_cast<ptrdiff_t>(reserved.slabs[0].offset));
  ASSERT_TRUE(index.commit(7, reserved.id, coarse.header, Clock::now()));
  std::vector<TieredLookup::Page> found;
  lookups->lookup(1, {known_identity(1)}, 0b11, false, [&](const auto& pages) { found = pages; });
  work();
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(mask_of(found[0].found.slabs), 0b11u);
  EXPECT_EQ(found[0].found.header.levels_present, 0b11);
  const Slab upper = found[0].found.slabs[1];
  EXPECT_TRUE(std::ranges::equal(std::span(pool).subspan(upper.offset, upper.bytes), known_slab(1, 1, 500)));
  EXPECT_EQ(*look_up(1), 1) << "at once";
}

}  // namespace
}  // namespace lowkey::kvstore
