// Lookups of a store that has a disk: pages that are in memory are leased at once, and those that are only on
// disk are read into the pool first, off the I/O thread, and leased then. A lookup is answered when all of
// its pages are there, or with what is there at its deadline. Only verified bytes are committed.
//
// Where a lookup has waited to its deadline and no read has ended meanwhile, the disk hangs: until one ends,
// pages that are only there count as absent, so that nobody else waits for it.
//
// A page is read as far as it is wanted: the levels up to the highest wanted one, and its sink. Lookups that
// want the same page share one read. Thread rule: the I/O thread.
#pragma once

#include <boost/asio/steady_timer.hpp>

#include <functional>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "kvstore/service/store_index.h"
#include "kvstore/tier/disk/disk_tier.h"

namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::kvstore {

class TieredLookup : public std::enable_shared_from_this<TieredLookup> {
 public:
  using Owner = StoreIndex::Owner;
  struct Options {
    Duration deadline = std::chrono::seconds(2);  // a reader's lease must be fresh when it is told about it
    uint64_t max_bytes = 64ull << 20;             // being read from disk at a time, for all lookups
    size_t max_waiting = 64;                      // lookups; further ones are answered from memory alone
    std::function<TimePoint()> now = Clock::now;  // of the index's times
  };
  struct Page {
    StoreIndex::Found found;
    uint32_t tier = 1;  // FoundPage.tier
  };
  using Done = std::function<void(const std::vector<Page>&)>;

  // `on_progress` after every read that ended. All that is referred to outlives this object.
  TieredLookup(boost::asio::io_context& io, StoreIndex& index, std::span<std::byte> pool, DiskTier& disk,
               monitoring::Metrics& metrics, const Options& options, std::function<void()> on_progress);

  // As StoreIndex::lookup(). `done` exactly once, possibly before this returns, unless the owner is dropped.
  void lookup(Owner owner, std::vector<Hash128> identities, SlabMask wanted, bool gaps, Done done);
  void drop_owner(Owner owner);  // forgets its lookups; its leases are the index's business
  size_t waiting() const { return waiting_.size(); }
  bool hangs() const { return hangs_; }

 private:
  struct Lookup;
  struct Read {
    uint64_t reservation = 0;
    uint64_t bytes = 0;
    std::vector<std::pair<std::shared_ptr<Lookup>, size_t>> waiters;  // and which page of theirs
  };
  enum class Where { kNowhere, kMemory, kDisk };
  struct Source {
    Where where = Where::kNowhere;
    SlabBytes load{};  // kDisk
  };

  Source source_of(const Hash128& identity, SlabMask wanted, bool gaps) const;
  bool lease(Lookup& lookup, size_t i, uint32_t tier);
  void advance();  // starts reads, ends lookups that wait for nothing more
  bool read(const std::shared_ptr<Lookup>& lookup, size_t i);
  bool give_up_end(Lookup& lookup, size_t i);
  void read_ended(const Hash128& identity, const DiskTier::Job& job);
  void settle(Lookup& lookup, size_t i, bool good);
  void expired(const std::shared_ptr<Lookup>& lookup);
  void finish(const std::shared_ptr<Lookup>& lookup);
  void count(const DiskTier::Job& job);

  boost::asio::io_context& io_;
  StoreIndex& index_;
  const std::span<std::byte> pool_;
  DiskTier& disk_;
  monitoring::Metrics& metrics_;
  const Options options_;
  const std::function<void()> on_progress_;
  std::list<std::shared_ptr<Lookup>> waiting_;  // in the order they came
  std::unordered_map<Hash128, Read> reads_;
  uint64_t bytes_ = 0;  // of reads_
  uint64_t reads_ended_ = 0;
  bool hangs_ = false;
};

}  // namespace lowkey::kvstore
