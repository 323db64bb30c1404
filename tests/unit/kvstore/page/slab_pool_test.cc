#include "kvstore/page/slab_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <set>

#include "base/bytes.h"

namespace lowkey::kvstore {
namespace {

SuperblockArena arena_of(uint32_t superblocks, uint64_t bytes) {
  return std::move(SuperblockArena::map(superblocks, bytes)).value();
}

TEST(SlabPool, IdsGiveAddressesWithoutBookkeeping) {
  SuperblockArena leader_arena = arena_of(4, 4096), follower_arena = arena_of(4, 4096);
  SlabPool leader(leader_arena, 1088), follower(follower_arena, 1088);
  std::set<std::ptrdiff_t> offsets;
  while (const auto slab = leader.allocate()) {
    const std::ptrdiff_t offset = leader.address(*slab) - leader_arena.address(0);
    EXPECT_EQ(offset, follower.address(*slab) - follower_arena.address(0));
    EXPECT_LE(offset % 4096 + 1088, 4096) << "a slab lies inside one superblock";
    EXPECT_TRUE(offsets.insert(offset).second);
  }
  EXPECT_EQ(offsets.size(), 4u * 3);
}

TEST(SlabPool, AnEmptySuperblockServesAnotherSize) {
  SuperblockArena arena = arena_of(1, 4096);
  SlabPool small(arena, 1024), large(arena, 4096);
  const SlabId a = *small.allocate(), b = *small.allocate();
  EXPECT_FALSE(large.allocate());
  small.free(a);
  EXPECT_FALSE(large.allocate()) << "one small slab still holds the superblock";
  small.free(b);
  EXPECT_TRUE(large.allocate());
}

TEST(SlabPool, FreeingTwiceAborts) {
  SuperblockArena arena = arena_of(1, 4096);
  SlabPool pool(arena, 1024);
  const SlabId id = *pool.allocate(), other = *pool.allocate();
  pool.free(id);
  EXPECT_DEATH(pool.free(id), "freed but not allocated");
  pool.free(other);
}

// Random operations of three sizes against a model of the memory: no two slabs overlap, contents survive, and
// the counted bytes are what is really held.
TEST(SlabPool, RandomOperationsKeepTheLedgerExact) {
  constexpr uint64_t kSuperblock = 64 * kKiB;
  SuperblockArena arena = arena_of(12, kSuperblock);
  const std::vector<uint64_t> sizes{64, 5 * 1024 + 64, 40 * 1024};
  std::vector<std::unique_ptr<SlabPool>> pools;
  for (const uint64_t size : sizes) pools.push_back(std::make_unique<SlabPool>(arena, size));
  std::vector<std::map<SlabId, uint8_t>> live(sizes.size());
  std::mt19937 random(7);
  for (int step = 0; step < 30000; ++step) {
    const size_t which = random() % sizes.size();
    auto& mine = live[which];
    if (random() % 1000 < (step / 3000 % 2 ? 350u : 600u)) {
      if (const auto slab = pools[which]->allocate()) {
        const auto mark = static_cast<uint8_t>(random());
        ASSERT_TRUE(mine.emplace(*slab, mark).second);
        std::memset(pools[which]->address(*slab), mark, sizes[which]);
      }
    } else if (!mine.empty()) {
      const auto victim = std::next(mine.begin(), random() % mine.size());
      const auto* bytes = reinterpret_cast<const uint8_t*>(pools[which]->address(victim->first));
      ASSERT_EQ(bytes[0], victim->second);
      ASSERT_EQ(bytes[sizes[which] - 1], victim->second);
      pools[which]->free(victim->first);
      mine.erase(victim);
    }
    uint64_t total = arena.free_superblocks() * kSuperblock;
    for (size_t i = 0; i < sizes.size(); ++i) {
      ASSERT_EQ(pools[i]->used_bytes(), live[i].size() * sizes[i]);
      total += pools[i]->used_bytes() + pools[i]->free_bytes() + pools[i]->slack_bytes();
    }
    ASSERT_EQ(total, arena.capacity_bytes());
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    for (const auto& [slab, mark] : live[i]) pools[i]->free(slab);
  }
  EXPECT_EQ(arena.free_superblocks(), 12u);
}

TEST(SuperblockArena, ChoosesTheSuperblockThatWastesLittle) {
  const auto choose = [](std::vector<uint64_t> sizes, uint64_t budget) {
    return SuperblockArena::choose_superblock_bytes(sizes, budget);
  };
  EXPECT_EQ(choose({92 * kKiB}, kGiB), 2 * kMiB);
  EXPECT_EQ(choose({4 * kMiB}, kGiB), 4 * kMiB) << "a slab above 2 MiB has superblocks of its own size";
  // 720 KiB slabs would leave 30 % of 2 MiB unused.
  const uint64_t chosen = choose({720 * kKiB}, kGiB);
  EXPECT_EQ(chosen % (2 * kMiB), 0u);
  EXPECT_LE(chosen % (720 * kKiB), chosen / 16);
  EXPECT_EQ(choose({720 * kKiB}, 178 * kMiB), 720 * kKiB) << "no room for 64 of a multiple that does not";
  EXPECT_EQ(choose({40 * kKiB}, 256 * kKiB), 40 * kKiB) << "small budgets get small superblocks";
}

}  // namespace
}  // namespace lowkey::kvstore
