#include "kvstore/service/store_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "tests/unit/kvstore/service/store_index_support.h"

namespace lowkey::kvstore {
namespace {

using std::chrono::seconds;

// Reserves and commits a page of `levels` slabs.
void put(StoreIndex& index, uint64_t n, uint32_t bytes, TimePoint now = kStart, int levels = 1) {
  const std::vector<uint32_t> slabs(levels, bytes);
  const auto reservation = index.reserve(1, identity(n), slabs, now);
  ASSERT_EQ(reservation.grant, Grant::kGranted);
  ASSERT_TRUE(index.commit(1, reservation.id, header_of(n, levels), now));
}

std::vector<StoreIndex::Found> whole_pages(StoreIndex& index, StoreIndex::Owner owner,
                                           std::span<const Hash128> identities, TimePoint now) {
  return index.lookup(owner, identities, kAll, false, now);
}

TEST(OffsetAllocator, MergesNeighboursAndTakesTheTightestHole) {
  OffsetAllocator allocator(1024);
  const uint64_t a = *allocator.allocate(64), b = *allocator.allocate(128), c = *allocator.allocate(256);
  ASSERT_TRUE(allocator.allocate(576));
  EXPECT_FALSE(allocator.allocate(1)) << "the pool is full";
  allocator.free(a);
  allocator.free(c);
  EXPECT_EQ(allocator.allocate(60), a) << "rounded to 64: fits the hole of 64, not the one of 256";
  allocator.free(a);
  allocator.free(b);
  EXPECT_EQ(allocator.allocate(448), 0u) << "three neighbours are one hole again";
  EXPECT_EQ(allocator.used(), 1024u);
}

TEST(StoreIndex, APageIsFoundOnlyOnceCommitted) {
  StoreIndex index(small_pool(4096));
  const uint32_t slabs[] = {100, 0, 64};
  const auto reservation = index.reserve(1, identity(7), slabs, kStart);
  ASSERT_EQ(reservation.grant, Grant::kGranted);
  const Hash128 wanted[] = {identity(7)};
  EXPECT_TRUE(whole_pages(index, 2, wanted, kStart).empty());
  EXPECT_EQ(index.ledger().in_flight, 128u + 64u);
  EXPECT_EQ(index.ledger().requested, 164u);

  EXPECT_FALSE(index.commit(2, reservation.id, header_of(7, 1, true), kStart))
      << "another owner's reservation";
  EXPECT_FALSE(index.commit(1, reservation.id, header_of(8, 1, true), kStart)) << "header of another page";
  EXPECT_FALSE(index.commit(1, reservation.id, header_of(7, 2, true), kStart)) << "header of other slabs";
  EXPECT_FALSE(index.commit(1, reservation.id, header_of(7, 1), kStart)) << "header without the sink";
  EXPECT_TRUE(index.commit(1, reservation.id, header_of(7, 1, true), kStart));
  EXPECT_TRUE(index.commit(1, reservation.id, header_of(7, 1, true), kStart)) << "repeated";
  const auto found = whole_pages(index, 2, wanted, kStart);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].slabs[0].bytes, 100u);
  EXPECT_EQ(found[0].slabs[1].bytes, 0u);
  EXPECT_EQ(found[0].slabs[2].offset, reservation.slabs[2].offset);
}

TEST(StoreIndex, SecondWriterOfAPageIsToldThatItIsThere) {
  StoreIndex index(small_pool(4096));
  const uint32_t slabs[] = {64};
  const auto first = index.reserve(1, identity(1), slabs, kStart);
  EXPECT_EQ(index.reserve(2, identity(1), slabs, kStart).grant, Grant::kAlreadyPresent) << "being written";
  index.commit(1, first.id, header_of(1), kStart);
  EXPECT_EQ(index.reserve(2, identity(1), slabs, kStart).grant, Grant::kAlreadyPresent);
  EXPECT_EQ(index.ledger().used, 64u);
}

TEST(StoreIndex, EvictsTheLeastRecentlyUsedButNeverALeasedPage) {
  StoreIndex index(small_pool(3 * 64));
  for (uint64_t n = 1; n <= 3; ++n) put(index, n, 64);
  const Hash128 leased[] = {identity(1)}, used[] = {identity(2)};
  ASSERT_EQ(whole_pages(index, 5, leased, kStart).size(), 1u);
  index.release(6, whole_pages(index, 6, used, kStart).at(0).lease);
  put(index, 4, 64);
  EXPECT_TRUE(index.contains(identity(1))) << "oldest, but leased";
  EXPECT_TRUE(index.contains(identity(2))) << "read after page 3 was";
  EXPECT_FALSE(index.contains(identity(3)));
  EXPECT_EQ(index.counters().evicted_pages, 1u);

  const uint32_t too_much[] = {3 * 64};
  EXPECT_EQ(index.reserve(1, identity(9), too_much, kStart).grant, Grant::kFull);
  EXPECT_EQ(index.counters().evicted_pages, 1u) << "nothing is evicted in vain";
}

TEST(StoreIndex, APrefixLosesItsEndFirst) {
  StoreIndex index(small_pool(4 * 64));
  for (uint64_t n = 1; n <= 4; ++n) put(index, n, 64);
  const Hash128 chain[] = {identity(1), identity(2), identity(3), identity(4)};
  for (const auto& found : whole_pages(index, 1, chain, kStart)) index.release(1, found.lease);
  put(index, 5, 64);
  EXPECT_FALSE(index.contains(identity(4)));
  EXPECT_TRUE(index.contains(identity(1)));
}

TEST(StoreIndex, LookupStopsAtTheFirstMissAndAtTheBoundOfLeases) {
  StoreIndex::Options options = small_pool(4096);
  options.max_leases_per_owner = 2;
  StoreIndex index(options);
  for (uint64_t n : {1, 2, 4, 5, 6}) put(index, n, 64);
  const Hash128 holed[] = {identity(1), identity(2), identity(3), identity(4)};
  const auto run = whole_pages(index, 1, holed, kStart);
  EXPECT_EQ(run.size(), 2u);
  const Hash128 more[] = {identity(4)};
  EXPECT_TRUE(whole_pages(index, 1, more, kStart).empty()) << "owner 1 holds its two leases";
  EXPECT_EQ(whole_pages(index, 2, more, kStart).size(), 1u);
  index.release(1, run[0].lease);
  EXPECT_EQ(whole_pages(index, 1, more, kStart).size(), 1u);
}

TEST(StoreIndex, ReservationsAndLeasesRunOut) {
  StoreIndex index(small_pool(64));
  EXPECT_FALSE(index.next_expiry()) << "nothing to wait for: idle costs nothing";
  const uint32_t slabs[] = {64};
  const auto lost = index.reserve(1, identity(1), slabs, kStart);
  EXPECT_EQ(index.next_expiry(), kStart + seconds(10));
  put(index, 2, 64, kStart + seconds(10));
  EXPECT_FALSE(index.commit(1, lost.id, header_of(1), kStart + seconds(10)));
  EXPECT_EQ(index.counters().expired_reservations, 1u);

  const Hash128 wanted[] = {identity(2)};
  ASSERT_EQ(whole_pages(index, 1, wanted, kStart + seconds(10)).size(), 1u);
  EXPECT_EQ(index.reserve(1, identity(3), slabs, kStart + seconds(14)).grant, Grant::kFull);
  EXPECT_EQ(index.reserve(1, identity(3), slabs, kStart + seconds(15)).grant, Grant::kGranted);
  EXPECT_EQ(index.counters().expired_leases, 1u);
  EXPECT_FALSE(index.contains(identity(2))) << "evicted once its lease had run out";
}

TEST(StoreIndex, ADeadOwnersReservationsAndLeasesEnd) {
  StoreIndex index(small_pool(2 * 64));
  put(index, 1, 64);
  const Hash128 wanted[] = {identity(1)};
  const uint32_t slabs[] = {64};
  whole_pages(index, 7, wanted, kStart);
  index.reserve(7, identity(2), slabs, kStart);
  index.drop_owner(7);
  EXPECT_EQ(index.num_leases(), 0u);
  EXPECT_EQ(index.ledger().in_flight, 0u);
  EXPECT_EQ(index.ledger().evictable, 64u) << "the committed page stays";
  EXPECT_FALSE(index.next_expiry());
}

TEST(StoreIndex, ACorruptPageIsForgottenAtOnceAndFreedAfterItsLastReader) {
  StoreIndex index(small_pool(2 * 64));
  put(index, 1, 64);
  const Hash128 wanted[] = {identity(1)};
  const uint64_t first = whole_pages(index, 1, wanted, kStart).at(0).lease;
  const uint64_t second = whole_pages(index, 2, wanted, kStart).at(0).lease;
  index.release_corrupt(1, first);
  EXPECT_FALSE(index.contains(identity(1)));
  EXPECT_EQ(index.ledger().pinned, 64u);
  put(index, 1, 64);  // may be written anew while the old bytes are still read
  index.release(2, second);
  EXPECT_TRUE(index.contains(identity(1)));
  EXPECT_EQ(index.ledger().used, 64u);
  EXPECT_EQ(index.counters().corrupt_pages, 1u);
}

TEST(StoreIndex, LevelsGoBeforePagesAndTheOldestFirst) {
  StoreIndex index(small_pool(6 * 192));
  for (uint64_t n = 1; n <= 6; ++n) put(index, n, 64, kStart, 3);
  put(index, 7, 64, kStart, 3);
  EXPECT_EQ(index.counters().evicted_pages, 0u);
  EXPECT_EQ(index.counters().level_drops, 3u);
  EXPECT_EQ(index.present(identity(1)), 0b001u) << "the least recently used lost its upper levels";
  EXPECT_EQ(index.present(identity(2)), 0b011u);
  EXPECT_EQ(index.present(identity(3)), 0b111u);
  EXPECT_EQ(index.ledger().requested, index.ledger().used);
  for (uint64_t n = 8; n <= 30; ++n) put(index, n, 64, kStart, 3);
  EXPECT_GT(index.counters().evicted_pages, 0u);
  uint64_t coarse = 0, whole = 0;
  for (uint64_t n = 1; n <= 30; ++n) {
    coarse += index.present(identity(n)) == 0b001;
    whole += index.present(identity(n)) == 0b111;
  }
  EXPECT_GE(whole, 2u) << "the newest stay whole";
  EXPECT_GE(coarse, 5u) << "half of the pool is for pages of one level";
  EXPECT_EQ(index.present(identity(30)), 0b111u);
}

TEST(StoreIndex, LookupByLevelsWithAndWithoutGaps) {
  StoreIndex index(small_pool(6 * 192));
  for (uint64_t n = 1; n <= 7; ++n) put(index, n, 64, kStart, 3);  // 1: one level, 2: two levels
  const Hash128 wanted[] = {identity(3), identity(2), identity(1), identity(99), identity(4)};
  const auto indices = [&](SlabMask slabs, bool gaps) {
    std::vector<size_t> result;
    for (const auto& found : index.lookup(1, wanted, slabs, gaps, kStart)) {
      result.push_back(found.index);
      index.release(1, found.lease);
    }
    return result;
  };
  EXPECT_EQ(indices(0b0001, false), (std::vector<size_t>{0, 1, 2}));
  EXPECT_EQ(indices(0b0001, true), (std::vector<size_t>{0, 1, 2, 4}));
  EXPECT_EQ(indices(0b0011, false), (std::vector<size_t>{0, 1}));
  EXPECT_EQ(indices(0b0111, false), (std::vector<size_t>{0}));
  EXPECT_EQ(indices(0b1111, false), (std::vector<size_t>{0})) << "page 3 never had a sink: no lack";
  EXPECT_EQ(indices(kAll, false), (std::vector<size_t>{0}));
  EXPECT_EQ(indices(0b0110, true), (std::vector<size_t>{0, 1, 4})) << "what has any of them";
  const auto found = index.lookup(1, std::span(wanted).subspan(1, 1), 0b0111, true, kStart);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(mask_of(found[0].slabs), 0b0011u);
  EXPECT_EQ(found[0].header.levels_present, 0b111) << "what its header speaks of";
}

TEST(StoreIndex, MissingLevelsArePutBackWithoutTheOthers) {
  StoreIndex index(small_pool(6 * 192));
  for (uint64_t n = 1; n <= 7; ++n) put(index, n, 64, kStart, 3);
  const uint32_t slabs[] = {64, 64, 64};
  const Hash128 one[] = {identity(1)};
  const auto reader = index.lookup(2, one, 0b1, false, kStart);
  const auto grant = index.reserve(1, identity(1), slabs, kStart);
  ASSERT_EQ(grant.grant, Grant::kGranted);
  EXPECT_EQ(grant.there, 0b001u);
  EXPECT_EQ(mask_of(grant.slabs), 0b110u);
  EXPECT_EQ(index.reserve(2, identity(1), slabs, kStart).grant, Grant::kAlreadyPresent) << "being completed";
  EXPECT_EQ(index.ledger().in_flight, 128u);
  EXPECT_FALSE(index.commit(1, grant.id, header_of(1, 3, false, 7), kStart)) << "made of other bytes";
  EXPECT_TRUE(index.commit(1, grant.id, header_of(1, 3), kStart));
  EXPECT_TRUE(index.commit(1, grant.id, header_of(1, 3), kStart)) << "repeated";
  EXPECT_EQ(index.present(identity(1)), 0b111u);
  EXPECT_EQ(index.ledger().pinned, 192u) << "still read";
  index.release(2, reader.at(0).lease);
  EXPECT_EQ(index.ledger().pinned, 0u);

  const auto lost = index.reserve(3, identity(2), slabs, kStart);
  ASSERT_EQ(lost.grant, Grant::kGranted);
  index.drop_owner(3);
  EXPECT_NE(index.present(identity(2)), 0u) << "the page itself stays";
  EXPECT_EQ(index.ledger().in_flight, 0u);
}

TEST(StoreIndex, APageStoredWithFewerLevelsGainsTheOthers) {
  StoreIndex index(small_pool(4096));
  const uint32_t coarse[] = {64, 0, 0, 128}, whole[] = {64, 96, 160, 128};
  const auto first = index.reserve(1, identity(1), coarse, kStart);
  ASSERT_TRUE(index.commit(1, first.id, header_of(1, 1, true), kStart));
  EXPECT_EQ(index.lacking(identity(1), 0b1111), 0u) << "its header speaks of no more";
  const auto second = index.reserve(1, identity(1), whole, kStart);
  ASSERT_EQ(second.grant, Grant::kGranted);
  EXPECT_EQ(second.there, 0b1001u);
  ASSERT_TRUE(index.commit(1, second.id, header_of(1, 3, true), kStart));
  const Hash128 one[] = {identity(1)};
  const auto found = index.lookup(1, one, 0b1111, false, kStart);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].header.levels_present, 0b111);
  EXPECT_EQ(found[0].slabs[2].bytes, 160u);
}

TEST(StoreIndex, AnEvictedPageThatIsWantedAgainIsNoticedOnce) {
  StoreIndex index(small_pool(64));
  put(index, 1, 64);
  put(index, 2, 64, kStart + seconds(1));
  EXPECT_EQ(index.evicted_since(identity(1), kStart + seconds(4)), seconds(3));
  EXPECT_FALSE(index.evicted_since(identity(1), kStart + seconds(5)));
  EXPECT_FALSE(index.evicted_since(identity(2), kStart + seconds(5))) << "it is there";
  EvictedMemory memory(2);
  for (uint64_t n = 1; n <= 3; ++n) memory.evicted(identity(n), kStart);
  EXPECT_EQ(memory.size(), 2u);
  EXPECT_FALSE(memory.wanted(identity(1), kStart));
}

}  // namespace
}  // namespace lowkey::kvstore
