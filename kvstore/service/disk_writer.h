// Writes committed pages behind to the disk tier, in the order they came. A page stays in the pool while it
// waits, unpinned: only what the disk thread is working on is pinned, so a slow disk never takes memory from
// the store. A page that is evicted before its turn is lost to the disk, and counted. Thread rule: the I/O
// thread.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <span>

#include "kvstore/service/store_index.h"
#include "kvstore/tier/disk/disk_tier.h"

namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::kvstore {

class DiskWriter : public std::enable_shared_from_this<DiskWriter> {
 public:
  static constexpr size_t kMaxBacklog = 65536;  // pages; beyond it they are dropped, and counted
  static constexpr size_t kMaxWrites = 4;       // handed to the disk thread: a read waits for no more

  // `on_progress` after every write that ended. All that is referred to outlives the writer.
  DiskWriter(StoreIndex& index, std::span<std::byte> pool, DiskTier& disk, monitoring::Metrics& metrics,
             std::function<void()> on_progress)
      : index_(index), pool_(pool), disk_(disk), metrics_(metrics), on_progress_(std::move(on_progress)) {}

  void committed(const Hash128& identity);  // notes it for pump()
  void pump();                              // starts what can be started
  bool idle() const { return backlog_.empty() && writes_ == 0; }

 private:
  void ended(const Hash128& identity, uint64_t lease, const DiskTier::Job& job);
  void count(const char* outcome);

  StoreIndex& index_;
  const std::span<std::byte> pool_;
  DiskTier& disk_;
  monitoring::Metrics& metrics_;
  const std::function<void()> on_progress_;
  std::deque<Hash128> backlog_;
  size_t writes_ = 0;
};

}  // namespace lowkey::kvstore
