// A store's index, its disk and the thread between them as one, against a model that knows every byte: random
// writes, reads, lost writers, evictions, dropped levels and restarts. The disk's jobs are done in turn on
// this thread, so that a failure repeats.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <cstring>
#include <map>
#include <random>
#include <set>

#include "kvstore/service/disk_writer.h"
#include "kvstore/service/tiered_lookup.h"
#include "monitoring/metrics.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/kvstore/tier/disk/disk_page.h"

namespace lowkey::kvstore {
namespace {

using std::chrono::milliseconds;
using testing::TempFolder;

class Tiers {
 public:
  static constexpr uint64_t kPool = 96 << 10, kDisk = 512 << 10, kPages = 400, kOwners = 3;

  explicit Tiers(uint32_t seed) : random_(seed), pool_(kPool) { start(); }
  ~Tiers() { stop(); }

  void run(uint64_t operations) {
    for (uint64_t i = 0; i < operations && !::testing::Test::HasFatalFailure(); ++i) {
      now_ += std::chrono::microseconds(roll(500));
      step();
      if (i % 32 == 0) verify();
    }
    stop();
    start();
  }

  struct Count {
    uint64_t stored = 0, completed = 0, found_in_memory = 0, found_on_disk = 0, missed = 0, level_drops = 0,
             evicted = 0, corrupt = 0, restarts = 0;
    void operator+=(const Count& other) {
      stored += other.stored;
      completed += other.completed;
      found_in_memory += other.found_in_memory;
      found_on_disk += other.found_on_disk;
      missed += other.missed;
      level_drops += other.level_drops;
      evicted += other.evicted;
      corrupt += other.corrupt;
      restarts += other.restarts;
    }
  } count;

 private:
  struct Write {
    uint64_t page, owner;
    StoreIndex::Reservation reservation;
    int levels;
    bool completes;  // a page that is there
    TimePoint expires;
  };
  struct Lease {
    uint64_t owner;
    StoreIndex::Found found;
  };
  static constexpr Duration kTtl = milliseconds(100);

  uint64_t roll(uint64_t n) { return random_() % n; }

  // What page n is: its whole form, made once.
  const KnownPage& known(uint64_t n) {
    auto& page = known_[n];
    if (page.header.levels_present == 0)
      page = known_page(n, 200 + n * 7 % 1500, 1 + static_cast<int>(n % 3), n % 4 == 0);
    return page;
  }
  static int num_levels(const KnownPage& page) { return std::popcount(page.header.levels_present); }

  void start() {
    std::memset(pool_.data(), 0xee, pool_.size());
    io_ = std::make_unique<boost::asio::io_context>();
    index_ =
        std::make_unique<StoreIndex>(StoreIndex::Options{.capacity = kPool,
                                                         .reservation_ttl = kTtl,
                                                         .lease_ttl = kTtl,
                                                         .on_change = [this](const auto& header, bool held) {
                                                           if (held) {
                                                             in_memory_.insert(header.identity);
                                                             writer_->committed(header.identity);
                                                           } else {
                                                             ASSERT_EQ(in_memory_.erase(header.identity), 1u);
                                                           }
                                                         }});
    disk_ = std::move(
        DiskTier::open(
            {.log = {.folder = folder_.path().string(), .capacity = kDisk, .segment_bytes = 64 << 10},
             .threaded = false},
            [this](auto f) { boost::asio::post(*io_, std::move(f)); },
            [this](const auto& changes) { note(changes); })
            .value());
    const std::set<Hash128> before = std::exchange(on_disk_, {});
    running_ = false;
    writer_ = std::make_shared<DiskWriter>(*index_, std::span(pool_), *disk_, metrics_, [] {});
    tiered_ = std::make_shared<TieredLookup>(*io_, *index_, std::span(pool_), *disk_, metrics_,
                                             TieredLookup::Options{.deadline = std::chrono::hours(1),
                                                                   .max_bytes = 8 << 10,
                                                                   .max_waiting = 4,
                                                                   .now = [this] { return now_; }},
                                             [this] { writer_->pump(); });
    settle();
    // All that was there is found again; and, perhaps, an older record of a page whose newer one went first.
    ASSERT_TRUE(std::includes(on_disk_.begin(), on_disk_.end(), before.begin(), before.end()));
    ASSERT_TRUE(std::includes(written_.begin(), written_.end(), on_disk_.begin(), on_disk_.end()));
    ASSERT_EQ(disk_->stats().torn, 0u);
    running_ = true;
  }
  void stop() {
    if (!disk_) return;
    io_->restart();
    io_->poll();  // what the disk has done is known
    count.level_drops += index_->counters().level_drops;
    count.evicted += index_->counters().evicted_pages;
    writes_.clear();
    leases_.clear();
    in_memory_.clear();
    disk_.reset();  // with jobs left undone
    tiered_.reset();
    writer_.reset();
    io_.reset();
    index_.reset();
    ++count.restarts;
  }
  void note(const std::vector<DiskChange>& changes) {
    for (const DiskChange& change : changes) {
      if (change.held) {
        ASSERT_TRUE(on_disk_.insert(change.identity).second);
        if (running_) written_.insert(change.identity);
      } else {
        ASSERT_EQ(on_disk_.erase(change.identity), 1u);
      }
    }
  }
  // All that is under way, to its end.
  void settle() {
    do {
      disk_->work();
      io_->restart();
    } while (io_->poll() > 0);
  }

  void step() {
    const uint64_t kind = roll(1000);
    if (kind < 350) return write();
    if (kind < 600) return commit();
    if (kind < 850) return look_up();
    if (kind < 960) return release();
    if (kind < 975) return settle();
    if (kind < 995) return expire();
    if (kind < 997) return abort();
    if (kind < 999) return drop_owner();
    if (roll(4) > 0) return;
    stop();
    start();
  }

  void write() {
    const uint64_t n = roll(kPages), owner = 1 + roll(kOwners);
    const KnownPage& page = known(n);
    const int levels = roll(4) == 0 ? 1 + static_cast<int>(roll(num_levels(page))) : num_levels(page);
    SlabBytes bytes{};
    for (int i = 0; i < levels; ++i) bytes[i] = static_cast<uint32_t>(page.slabs[i].size());
    bytes[3] = static_cast<uint32_t>(page.slabs[3].size());
    index_->expire(now_);
    const SlabMask before = index_->present(known_identity(n));
    const bool busy = index_->being_written(known_identity(n));
    forget_expired();
    const auto reservation = index_->reserve(owner, known_identity(n), bytes, now_);
    if (reservation.grant == StoreIndex::Grant::kAlreadyPresent) {
      ASSERT_TRUE(busy || (mask_of(bytes) & ~before) == 0);
      return;
    }
    if (reservation.grant != StoreIndex::Grant::kGranted) return;
    count.completed += before != 0;
    for (size_t i = 0; i < reservation.slabs.size(); ++i) {  // the one-sided put
      const Slab& slab = reservation.slabs[i];
      if (slab.bytes > 0) std::memcpy(pool_.data() + slab.offset, page.slabs[i].data(), slab.bytes);
    }
    writes_.push_back({n, owner, reservation, levels, before != 0, now_ + kTtl});
  }
  void commit() {
    if (writes_.empty()) return;
    const size_t at = roll(writes_.size());
    const Write write = writes_[at];
    writes_.erase(writes_.begin() + static_cast<ptrdiff_t>(at));
    kernels::PageHeader header = known(write.page).header;
    header.levels_present = static_cast<uint8_t>((1 << write.levels) - 1);
    for (int i = write.levels; i < 3; ++i) header.checksums[i] = 0;
    header.header_checksum = header.compute_checksum();
    ASSERT_EQ(index_->commit(write.owner, write.reservation.id, header, now_), write.expires > now_);
    count.stored += write.expires > now_;
    writer_->pump();
  }
  void look_up() {
    const uint64_t owner = 1 + roll(kOwners);
    std::vector<Hash128> identities;
    std::vector<uint64_t> pages;
    for (uint64_t n = roll(kPages), i = 0, run = 1 + roll(4); i < run; ++i) {
      pages.push_back((n + i) % kPages);
      identities.push_back(known_identity(pages.back()));
    }
    const SlabMask wanted = roll(16);
    const bool gaps = roll(2) == 0;
    tiered_->lookup(owner, identities, wanted, gaps, [=, this](const std::vector<TieredLookup::Page>& found) {
      check(owner, pages, wanted, gaps, found);
    });
    if (roll(4) > 0) settle();
  }
  // A page that is told to be there is there, byte by byte.
  void check(uint64_t owner, const std::vector<uint64_t>& pages, SlabMask wanted, bool gaps,
             const std::vector<TieredLookup::Page>& found) {
    count.missed += pages.size() - found.size();
    for (size_t i = 0; i < found.size(); ++i) {
      const auto& [page, tier] = found[i];
      ASSERT_TRUE(gaps || page.index == i);
      const KnownPage& expected = known(pages.at(page.index));
      ASSERT_EQ(page.header.identity, expected.header.identity);
      ASSERT_EQ(page.header.header_checksum, page.header.compute_checksum());
      verify_bytes(page, expected);
      const SlabMask there = mask_of(page.slabs);
      if (!gaps && wanted != 0) {
        ASSERT_EQ(wanted & known_slabs(page.header, there) & ~there, 0u);
      }
      ++(tier == 2 ? count.found_on_disk : count.found_in_memory);
      leases_[page.lease] = {owner, page};
    }
  }
  void verify_bytes(const StoreIndex::Found& page, const KnownPage& expected) {
    for (size_t i = 0; i < page.slabs.size(); ++i) {
      const Slab& slab = page.slabs[i];
      if (slab.bytes == 0) continue;
      ASSERT_EQ(slab.bytes, expected.slabs[i].size());
      ASSERT_EQ(std::memcmp(pool_.data() + slab.offset, expected.slabs[i].data(), slab.bytes), 0)
          << "slab " << i << " of page " << page.header.identity.lo;
    }
  }
  void release() {
    forget_expired();
    if (leases_.empty()) return;
    const auto lease = leases_.lower_bound(roll(leases_.rbegin()->first + 1));
    const auto [id, held] = *lease;
    const Hash128 identity = held.found.header.identity;
    verify_bytes(held.found, known(identity.lo));  // however long ago it was leased
    leases_.erase(lease);
    const auto same = [&](const auto& other) { return other.second.found.header.identity == identity; };
    const bool alone = tiered_->waiting() == 0 && std::none_of(leases_.begin(), leases_.end(), same) &&
                       !index_->being_written(identity);
    if (alone && roll(64) == 0) {
      index_->release_corrupt(held.owner, id);
      ASSERT_FALSE(index_->contains(identity));
      ++count.corrupt;
    } else {
      index_->release(held.owner, id);
    }
  }
  void expire() {
    if (roll(8) == 0) now_ += kTtl / 2;
    index_->expire(now_);
    forget_expired();
  }
  void forget_expired() {
    std::erase_if(writes_, [&](const Write& write) { return write.expires <= now_; });
    std::erase_if(leases_, [&](const auto& lease) { return lease.second.found.expires <= now_; });
  }
  void abort() {
    if (writes_.empty()) return;
    index_->abort(writes_.back().owner, writes_.back().reservation.id);
    writes_.pop_back();
  }
  void drop_owner() {
    const uint64_t owner = 1 + roll(kOwners);
    tiered_->drop_owner(owner);
    index_->drop_owner(owner);
    std::erase_if(writes_, [&](const Write& write) { return write.owner == owner; });
    std::erase_if(leases_, [&](const auto& lease) { return lease.second.owner == owner; });
  }
  // Nothing is under way but what the model knows of: then every number must be the model's.
  void verify() {
    settle();
    ASSERT_TRUE(writer_->idle());
    ASSERT_EQ(tiered_->waiting(), 0u);
    index_->expire(now_);
    forget_expired();
    std::set<Hash128> pinned;
    for (const auto& [id, lease] : leases_) pinned.insert(lease.found.header.identity);
    StoreLedger sum;
    for (const Write& write : writes_) {
      if (write.completes) pinned.insert(known_identity(write.page));
      sum.pages_in_flight += !write.completes;
      for (const Slab& slab : write.reservation.slabs) {
        sum.in_flight += OffsetAllocator::rounded(slab.bytes);
        sum.requested += slab.bytes;
      }
    }
    for (const Hash128& identity : in_memory_) {
      const KnownPage& page = known(identity.lo);
      const SlabMask there = index_->present(identity);
      ASSERT_NE(there, 0u) << "lost";
      uint64_t& bytes = pinned.contains(identity) ? sum.pinned : sum.evictable;
      ++(pinned.contains(identity) ? sum.pages_pinned : sum.pages_evictable);
      for (size_t i = 0; i < page.slabs.size(); ++i) {
        if ((there >> i & 1) == 0) continue;
        bytes += OffsetAllocator::rounded(page.slabs[i].size());
        sum.requested += page.slabs[i].size();
      }
    }
    const StoreLedger ledger = index_->ledger();
    ASSERT_EQ(ledger.evictable, sum.evictable);
    ASSERT_EQ(ledger.pinned, sum.pinned);
    ASSERT_EQ(ledger.in_flight, sum.in_flight);
    ASSERT_EQ(ledger.requested, sum.requested);
    ASSERT_EQ(ledger.used, sum.evictable + sum.pinned + sum.in_flight);
    ASSERT_EQ(ledger.free, kPool - ledger.used);
    ASSERT_EQ(ledger.pages_evictable, sum.pages_evictable);
    ASSERT_EQ(ledger.pages_pinned, sum.pages_pinned);
    ASSERT_EQ(ledger.pages_in_flight, sum.pages_in_flight);
    ASSERT_EQ(on_disk_.size(), disk_->stats().pages);
    ASSERT_LE(disk_->stats().bytes, kDisk);
  }

  std::mt19937 random_;
  // In memory where there is such a folder: thousands of segments are synced.
  TempFolder folder_{std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : "/tmp"};
  std::vector<std::byte> pool_;
  monitoring::Metrics metrics_{{{"role", "store"}, {"rank", "0"}}};
  std::map<uint64_t, KnownPage> known_;
  std::vector<Write> writes_;
  std::map<uint64_t, Lease> leases_;
  std::set<Hash128> in_memory_, on_disk_, written_;
  bool running_ = false;  // else what is found at the start
  TimePoint now_{};
  std::unique_ptr<boost::asio::io_context> io_;
  std::unique_ptr<StoreIndex> index_;
  std::unique_ptr<DiskTier> disk_;
  std::shared_ptr<DiskWriter> writer_;
  std::shared_ptr<TieredLookup> tiered_;
};

TEST(StoreTiers, AMillionRandomOperationsAgreeWithAModel) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr uint64_t kSeeds = 10, kOperations = 10'000;  // these take ten times as long
#else
  constexpr uint64_t kSeeds = 10, kOperations = 100'000;
#endif
  Tiers::Count total;
  for (uint32_t seed = 1; seed <= kSeeds && !HasFatalFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Tiers tiers(seed);
    tiers.run(kOperations);
    total += tiers.count;
  }
  // All that can happen did, often.
  constexpr uint64_t kOften = kSeeds * kOperations / 100;
  EXPECT_GT(total.stored, kOften);
  EXPECT_GT(total.completed, kOften / 10);
  EXPECT_GT(total.found_in_memory, kOften);
  EXPECT_GT(total.found_on_disk, kOften);
  EXPECT_GT(total.missed, kOften);
  EXPECT_GT(total.level_drops, kOften);
  EXPECT_GT(total.evicted, kOften);
  EXPECT_GT(total.corrupt, kOften / 100);
  EXPECT_GT(total.restarts, kOften / 100);
}

}  // namespace
}  // namespace lowkey::kvstore
