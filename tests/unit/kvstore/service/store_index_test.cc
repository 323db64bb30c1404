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

constexpr SlabMask kAll = 0;

// `mark` tells apart what two writers made of the same page: checksum of slab i is mark + i.
kernels::PageHeader header_of(uint64_t n, int levels = 1, bool sink = false, uint64_t mark = 0) {
  kernels::PageHeader header;
  header.identity = identity(n);
  header.levels_present = static_cast<uint8_t>((1 << levels) - 1);
  header.has_sink = sink;
  for (size_t i = 0; i < header.checksums.size(); ++i) header.checksums[i] = mark + i;
  return header;
}

StoreIndex::Options small_pool(uint64_t capacity) {
  return {.capacity = capacity, .reservation_ttl = seconds(10), .lease_ttl = seconds(5)};
}

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
    uint64_t identity = 0;
    Slabs slabs;           // that are there
    uint64_t pending = 0;  // reservation
    uint64_t writer = 0;
    Slabs written;
    int levels = 0;
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
    const int levels = 1 + static_cast<int>(roll(3));
    std::vector<uint32_t> slabs(kernels::kMaxSlabs);
    for (int i = 0; i < levels; ++i) slabs[i] = 1 + (n * 37 + i * 911) % 3000;  // by page and slab alone
    if (n % 4 == 0) slabs[3] = 100;
    forget_what_is_gone();
    const auto page = std::find_if(pages_.begin(), pages_.end(),
                                   [&](auto& p) { return p.second.identity == n && !p.second.doomed; });
    SlabMask lacks = 0;
    for (int i = 0; i < kernels::kMaxSlabs; ++i) lacks |= SlabMask{slabs[i] > 0} << i;
    const SlabMask offered = lacks;
    if (page != pages_.end()) lacks &= ~mask_of(page->second.slabs);
    const bool busy = page != pages_.end() && (!page->second.committed || page->second.pending != 0);
    const auto reservation = index_.reserve(owner, identity(n), slabs, now_);
    ASSERT_EQ(reservation.grant == Grant::kAlreadyPresent, busy || lacks == 0);
    if (reservation.grant != Grant::kGranted) return;
    ASSERT_EQ(mask_of(reservation.slabs), lacks);
    ASSERT_EQ(reservation.there, offered & ~lacks);
    const uint64_t id = page == pages_.end() ? reservation.id : page->first;
    Page& target = pages_[id];
    target.identity = n;
    target.pending = reservation.id;
    target.writer = owner;
    target.written = reservation.slabs;
    target.levels = levels;
    target.expires = now_ + seconds(10);
  }
  void commit() {
    if (pages_.empty()) return;
    Page& page = pick()->second;
    if (page.pending == 0) return;
    index_.expire(now_);
    const bool live = page.expires > now_ && !page.doomed;
    const auto header = header_of(page.identity, page.levels, page.identity % 4 == 0);
    ASSERT_EQ(index_.commit(page.writer, page.pending, header, now_), live);
    if (!live) return;
    for (size_t i = 0; i < page.slabs.size(); ++i) {
      if (page.written[i].bytes > 0) page.slabs[i] = page.written[i];
    }
    page.committed = true;
    page.pending = 0;
  }
  void lookup() {
    const uint64_t owner = 1 + roll(kOwners);
    std::vector<uint64_t> wanted(1 + roll(4));
    std::vector<Hash128> identities;
    for (uint64_t& n : wanted) identities.push_back(identity(n = roll(60)));
    const SlabMask slabs = roll(16);
    const bool gaps = roll(2) == 0;
    const auto found = index_.lookup(owner, identities, slabs, gaps, now_);
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_TRUE(gaps || found[i].index == i);
      const auto page = std::find_if(pages_.begin(), pages_.end(), [&](auto& p) {
        return p.second.identity == wanted[found[i].index] && p.second.committed && !p.second.doomed;
      });
      ASSERT_NE(page, pages_.end());
      for (size_t s = 0; s < found[i].slabs.size(); ++s) {
        ASSERT_EQ(found[i].slabs[s].bytes, page->second.slabs[s].bytes);
        ASSERT_EQ(found[i].slabs[s].offset, page->second.slabs[s].offset);
      }
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
    if (page->second.pending == 0) return;
    index_.abort(page->second.writer, page->second.pending);
    ended(page->first);
  }
  void drop(uint64_t owner) {
    index_.drop_owner(owner);
    for (auto& [id, page] : pages_) {
      std::erase_if(page.leases, [&](auto& l) { return l.second.first == owner; });
      if (page.pending != 0 && page.writer == owner) page.pending = 0;
    }
    std::erase_if(pages_, [&](auto& p) { return !p.second.committed && p.second.pending == 0; });
  }
  void ended(uint64_t id) {
    pages_.at(id).pending = 0;
    if (!pages_.at(id).committed) pages_.erase(id);
  }
  void forget_what_is_gone() {
    index_.expire(now_);
    for (auto& [id, page] : pages_) {
      std::erase_if(page.leases, [&](auto& l) { return l.second.second <= now_; });
      if (page.pending != 0 && page.expires <= now_) page.pending = 0;
    }
    std::erase_if(pages_, [&](auto& p) {
      const Page& page = p.second;
      if (!page.committed) return page.pending == 0;
      if (!page.leases.empty() || page.pending != 0) return false;  // pinned: must still be there
      return page.doomed || !index_.contains(identity(page.identity));
    });
    for (auto& [id, page] : pages_) {  // levels may be gone, from the top
      if (!page.committed || page.doomed) continue;
      const SlabMask before = mask_of(page.slabs), after = index_.present(identity(page.identity));
      if (before == after) continue;
      ASSERT_TRUE(page.leases.empty() && page.pending == 0);
      ASSERT_EQ(after & ~before, 0u);
      ASSERT_EQ(after & 0b1001, before & 0b1001) << "the first level and the sink stay";
      ASSERT_TRUE((after & 0b100) == 0 || (after & 0b10) != 0);
      for (int i = 1; i < 3; ++i) {
        if ((after >> i & 1) == 0) page.slabs[i] = {};
      }
    }
  }
  void verify() {
    StoreLedger sum;
    std::map<uint64_t, uint64_t> taken;  // offset -> end
    for (const auto& [id, page] : pages_) {
      const auto add = [&](const Slabs& slabs) {
        uint64_t bytes = 0;
        for (const Slab& slab : slabs) {
          if (slab.bytes == 0) continue;
          bytes += OffsetAllocator::rounded(slab.bytes);
          sum.requested += slab.bytes;
          EXPECT_TRUE(taken.emplace(slab.offset, slab.offset + OffsetAllocator::rounded(slab.bytes)).second);
        }
        return bytes;
      };
      const bool pinned = !page.leases.empty() || page.pending != 0;
      (pinned ? sum.pinned : sum.evictable) += add(page.slabs);
      if (page.pending != 0) sum.in_flight += add(page.written);
      ++(page.committed ? pinned ? sum.pages_pinned : sum.pages_evictable : sum.pages_in_flight);
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
