#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "kvstore/service/store_index.h"
#include "tests/unit/kvstore/service/store_index_support.h"

namespace lowkey::kvstore {
namespace {

using std::chrono::seconds;

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
