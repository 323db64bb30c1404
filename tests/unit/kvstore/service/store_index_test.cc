#include "kvstore/service/store_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

namespace lowkey::kvstore {
namespace {

using Grant = StoreIndex::Grant;
using std::chrono::seconds;

const TimePoint kStart{};

Hash128 identity(uint64_t n) {
  return {n * 0x9e3779b97f4a7c15ull, n};
}

kernels::PageHeader header_of(uint64_t n) {
  kernels::PageHeader header;
  header.identity = identity(n);
  return header;
}

StoreIndex::Options small_pool(uint64_t capacity) {
  return {.capacity = capacity, .reservation_ttl = seconds(10), .lease_ttl = seconds(5)};
}

// Reserves and commits a page of one slab.
void put(StoreIndex& index, uint64_t n, uint32_t bytes, TimePoint now = kStart) {
  const uint32_t slabs[] = {bytes};
  const auto reservation = index.reserve(1, identity(n), slabs, now);
  ASSERT_EQ(reservation.grant, Grant::kGranted);
  ASSERT_TRUE(index.commit(1, reservation.id, header_of(n), now));
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
  EXPECT_TRUE(index.lookup(2, wanted, kStart).empty());
  EXPECT_EQ(index.ledger().in_flight, 128u + 64u);
  EXPECT_EQ(index.ledger().requested, 164u);

  EXPECT_FALSE(index.commit(2, reservation.id, header_of(7), kStart)) << "another owner's reservation";
  EXPECT_FALSE(index.commit(1, reservation.id, header_of(8), kStart)) << "header of another page";
  EXPECT_TRUE(index.commit(1, reservation.id, header_of(7), kStart));
  EXPECT_TRUE(index.commit(1, reservation.id, header_of(7), kStart)) << "repeated";
  const auto found = index.lookup(2, wanted, kStart);
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
  ASSERT_EQ(index.lookup(5, leased, kStart).size(), 1u);
  index.release(6, index.lookup(6, used, kStart).at(0).lease);
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
  for (const auto& found : index.lookup(1, chain, kStart)) index.release(1, found.lease);
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
  const auto run = index.lookup(1, holed, kStart);
  EXPECT_EQ(run.size(), 2u);
  const Hash128 more[] = {identity(4)};
  EXPECT_TRUE(index.lookup(1, more, kStart).empty()) << "owner 1 holds its two leases";
  EXPECT_EQ(index.lookup(2, more, kStart).size(), 1u);
  index.release(1, run[0].lease);
  EXPECT_EQ(index.lookup(1, more, kStart).size(), 1u);
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
  ASSERT_EQ(index.lookup(1, wanted, kStart + seconds(10)).size(), 1u);
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
  index.lookup(7, wanted, kStart);
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
  const uint64_t first = index.lookup(1, wanted, kStart).at(0).lease;
  const uint64_t second = index.lookup(2, wanted, kStart).at(0).lease;
  index.release_corrupt(1, first);
  EXPECT_FALSE(index.contains(identity(1)));
  EXPECT_EQ(index.ledger().pinned, 64u);
  put(index, 1, 64);  // may be written anew while the old bytes are still read
  index.release(2, second);
  EXPECT_TRUE(index.contains(identity(1)));
  EXPECT_EQ(index.ledger().used, 64u);
  EXPECT_EQ(index.counters().corrupt_pages, 1u);
}

// Random operations against a shadow that knows every slab handed out.
class Shadow {
 public:
  explicit Shadow(uint32_t seed) : random_(seed), index_(small_pool(kCapacity)) {}

  void step() {
    now_ += std::chrono::milliseconds(roll(200));
    switch (roll(10)) {
      case 0:
      case 1:
      case 2:
        reserve();
        break;
      case 3:
      case 4:
        commit();
        break;
      case 5:
      case 6:
        lookup();
        break;
      case 7:
        release();
        break;
      case 8:
        abort();
        break;
      default:
        if (roll(20) == 0)
          drop(1 + roll(kOwners));
        else
          index_.expire(now_);
    }
    forget_what_is_gone();
    verify();
  }

 private:
  static constexpr uint64_t kCapacity = 64 * 1024;
  static constexpr uint64_t kOwners = 3;
  struct Page {
    uint64_t owner;
    uint64_t identity;
    Slabs slabs;
    TimePoint expires;
    bool committed = false;
    bool doomed = false;
    std::map<uint64_t, std::pair<uint64_t, TimePoint>> leases;  // lease -> owner, expiry
  };

  uint64_t roll(uint64_t n) { return random_() % n; }
  std::map<uint64_t, Page>::iterator pick() {
    auto it = pages_.begin();
    if (!pages_.empty()) std::advance(it, roll(pages_.size()));
    return it;
  }

  void reserve() {
    const uint64_t owner = 1 + roll(kOwners), n = roll(60);
    std::vector<uint32_t> slabs(1 + roll(kernels::kMaxSlabs));
    for (uint32_t& bytes : slabs) bytes = roll(4) == 0 ? 0 : 1 + roll(3000);
    slabs[0] += 1;
    forget_what_is_gone();
    const auto reservation = index_.reserve(owner, identity(n), slabs, now_);
    const bool known = std::any_of(pages_.begin(), pages_.end(),
                                   [&](auto& p) { return p.second.identity == n && !p.second.doomed; });
    ASSERT_EQ(reservation.grant == Grant::kAlreadyPresent, known);
    if (reservation.grant != Grant::kGranted) return;
    for (size_t i = 0; i < slabs.size(); ++i) ASSERT_EQ(reservation.slabs[i].bytes, slabs[i]);
    pages_[reservation.id] = {owner, n, reservation.slabs, now_ + seconds(10)};
  }
  void commit() {
    if (pages_.empty()) return;
    const auto page = pick();
    index_.expire(now_);
    const bool live = page->second.committed ? !page->second.doomed : page->second.expires > now_;
    ASSERT_EQ(index_.commit(page->second.owner, page->first, header_of(page->second.identity), now_), live);
    if (live) page->second.committed = true;
  }
  void lookup() {
    const uint64_t owner = 1 + roll(kOwners);
    std::vector<uint64_t> wanted(1 + roll(4));
    std::vector<Hash128> identities;
    for (uint64_t& n : wanted) identities.push_back(identity(n = roll(60)));
    const auto found = index_.lookup(owner, identities, now_);
    for (size_t i = 0; i < found.size(); ++i) {
      const auto page = std::find_if(pages_.begin(), pages_.end(), [&](auto& p) {
        return p.second.identity == wanted[i] && p.second.committed && !p.second.doomed;
      });
      ASSERT_NE(page, pages_.end());
      ASSERT_EQ(found[i].slabs[0].offset, page->second.slabs[0].offset);
      page->second.leases[found[i].lease] = {owner, now_ + seconds(5)};
    }
  }
  void release() {
    if (pages_.empty()) return;
    const auto page = pick();
    if (page->second.leases.empty()) return;
    const auto [lease, holder] = *page->second.leases.begin();
    index_.release(holder.first + 1, lease);  // not its owner: ignored
    if (roll(8) == 0) {
      index_.expire(now_);
      page->second.doomed |= holder.second > now_;
      index_.release_corrupt(holder.first, lease);
    } else {
      index_.release(holder.first, lease);
    }
    page->second.leases.erase(lease);
  }
  void abort() {
    if (pages_.empty()) return;
    const auto page = pick();
    if (page->second.committed) return;
    index_.abort(page->second.owner, page->first);
    pages_.erase(page);
  }
  void drop(uint64_t owner) {
    index_.drop_owner(owner);
    std::erase_if(pages_, [&](auto& p) { return !p.second.committed && p.second.owner == owner; });
    for (auto& [id, page] : pages_)
      std::erase_if(page.leases, [&](auto& l) { return l.second.first == owner; });
  }
  void forget_what_is_gone() {
    index_.expire(now_);
    for (auto& [id, page] : pages_)
      std::erase_if(page.leases, [&](auto& l) { return l.second.second <= now_; });
    std::erase_if(pages_, [&](auto& p) {
      const Page& page = p.second;
      if (!page.committed) return page.expires <= now_;
      if (!page.leases.empty()) return false;  // leased: must still be there
      return page.doomed || !index_.contains(identity(page.identity));
    });
  }
  void verify() {
    StoreLedger sum;
    std::map<uint64_t, uint64_t> taken;  // offset -> end
    for (const auto& [id, page] : pages_) {
      uint64_t bytes = 0;
      for (const Slab& slab : page.slabs) {
        if (slab.bytes == 0) continue;
        bytes += OffsetAllocator::rounded(slab.bytes);
        sum.requested += slab.bytes;
        ASSERT_TRUE(taken.emplace(slab.offset, slab.offset + OffsetAllocator::rounded(slab.bytes)).second);
      }
      (page.committed ? page.leases.empty() ? sum.evictable : sum.pinned : sum.in_flight) += bytes;
      ++(page.committed ? page.leases.empty() ? sum.pages_evictable : sum.pages_pinned : sum.pages_in_flight);
      ASSERT_TRUE(!page.committed || page.doomed || index_.contains(identity(page.identity)));
    }
    uint64_t end = 0;
    for (const auto& [offset, slab_end] : taken) {
      ASSERT_GE(offset, end) << "two slabs overlap";
      end = slab_end;
    }
    ASSERT_LE(end, kCapacity);
    const StoreLedger ledger = index_.ledger();
    ASSERT_EQ(ledger.requested, sum.requested);
    ASSERT_EQ(ledger.evictable, sum.evictable);
    ASSERT_EQ(ledger.pinned, sum.pinned);
    ASSERT_EQ(ledger.in_flight, sum.in_flight);
    ASSERT_EQ(ledger.used, sum.evictable + sum.pinned + sum.in_flight);
    ASSERT_EQ(ledger.free + ledger.used, kCapacity);
    ASSERT_EQ(ledger.pages_evictable, sum.pages_evictable);
    ASSERT_EQ(ledger.pages_pinned, sum.pages_pinned);
    ASSERT_EQ(ledger.pages_in_flight, sum.pages_in_flight);
  }

  std::mt19937 random_;
  TimePoint now_ = kStart;
  StoreIndex index_;
  std::map<uint64_t, Page> pages_;
};

TEST(StoreIndex, RandomOperationsKeepTheLedgerExactAndSlabsApart) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Shadow shadow(seed);
    for (int i = 0; i < 2000 && !testing::Test::HasFatalFailure(); ++i) shadow.step();
  }
}

}  // namespace
}  // namespace lowkey::kvstore
