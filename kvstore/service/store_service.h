// The store's half of the worker <-> store protocol: answers reservations, commits, lookups and releases from
// a StoreIndex over one pool that workers write and read one-sidedly; the store's CPU never touches the
// slabs.
//
// With a disk tier, committed pages are written behind, and pages that are only on disk are read back before
// the lookup that wants them is answered. The coordinator is told which pages there are.
//
// A peer that dies loses its reservations and leases at once; others expire by a timer that runs only while
// there is something to expire. A malformed message closes its peer, with the reason. Thread rule: everything
// on the io_context's single thread.
#pragma once

#include <boost/asio/steady_timer.hpp>

#include <functional>
#include <map>
#include <memory>
#include <string_view>

#include "base/deadline.h"
#include "base/result.h"
#include "kvstore/service/disk_writer.h"
#include "kvstore/service/pool_memory.h"
#include "kvstore/service/prefix_announcer.h"
#include "kvstore/service/store_index.h"
#include "kvstore/service/tiered_lookup.h"
#include "kvstore/tier/disk/disk_tier.h"
#include "transport/control_plane.h"
#include "transport/data_plane.h"

namespace lowkey::monitoring {
class Metrics;
}
namespace google::protobuf {
class MessageLite;
}
namespace lowkey::wire {
class ReserveRequest;
class CommitRequest;
class LookupRequest;
class Release;
class Abort;
}  // namespace lowkey::wire

namespace lowkey::kvstore {

class StoreService : public std::enable_shared_from_this<StoreService> {
 public:
  struct Options {
    uint64_t host_bytes = 0;  // of the pool, allocated and touched by make()
    Duration reservation_ttl = std::chrono::seconds(30);
    Duration lease_ttl = std::chrono::seconds(30);
    std::optional<DiskTier::Options> disk;
    TieredLookup::Options tiered;
    Duration announce_delay = std::chrono::milliseconds(20);
    Duration announce_retry = std::chrono::seconds(1);
  };

  // One line says why not: the memory is not there, or the disk's folder cannot be used.
  static Result<std::shared_ptr<StoreService>> make(boost::asio::io_context& io, transport::DataPlane& data,
                                                    monitoring::Metrics& metrics, const Options& options);

  // To be called from the ControlHandlers of the store's control plane, for workers and the coordinator.
  void on_up(const transport::ConnectionPtr& peer);  // tells workers about the pool
  void on_message(const transport::ConnectionPtr& peer, transport::MessageType type, std::string_view body);
  void on_down(const transport::ConnectionPtr& peer);
  void on_coordinator_lost();  // as on_down() of the coordinator, where nobody has its connection any more

  // Tells the workers, who begin nothing new with this store and hang up once what is under way has ended;
  // `left`, once, when the last of them has. Nobody is let in any more.
  void leave(std::function<void()> left);

  void adopt_folders();    // once all stores of the job were made: DiskTier::adopt()
  bool disk_idle() const;  // nothing waits to be written
  // Before the service goes; false: the disk hangs, and so would the destructor.
  bool close_disk(Deadline deadline) { return !disk_ || disk_->close(deadline); }
  void measure();  // brings metrics up to date that cost time: when they are asked for

  StoreLedger ledger() const { return index_.ledger(); }
  std::optional<DiskStats> disk_stats() const;

 private:
  StoreService(boost::asio::io_context& io, std::shared_ptr<transport::MemoryPool> pool,
               std::string data_address, monitoring::Metrics& metrics, const Options& options);

  static void answer(const transport::ConnectionPtr& peer, transport::MessageType type,
                     const google::protobuf::MessageLite& message);
  Status handle(const transport::ConnectionPtr& peer, transport::MessageType type, std::string_view body);
  Status reserve(const transport::ConnectionPtr& peer, const wire::ReserveRequest& request);
  Status commit(const transport::ConnectionPtr& peer, const wire::CommitRequest& request);
  Status lookup(const transport::ConnectionPtr& peer, const wire::LookupRequest& request);
  bool commit_page(uint64_t owner, uint64_t reservation, std::string_view header);
  Status start_disk();
  void on_index_change(const kernels::PageHeader& header, bool held);
  void on_disk_change(const std::vector<DiskChange>& changes);
  void settle();  // after every change: metrics, the expiry timer and the disk's writer
  void count_disk();
  void arm();

  boost::asio::io_context& io_;
  const Options options_;
  const std::shared_ptr<transport::MemoryPool> pool_;
  const std::string data_address_;
  std::map<uint64_t, transport::ConnectionPtr> workers_;  // by connection id
  bool leaving_ = false;
  std::function<void()> left_;
  monitoring::Metrics& metrics_;
  PoolResidency residency_;
  PrefixAnnouncer announcer_;
  StoreIndex index_;
  std::unique_ptr<DiskTier> disk_;  // null: none. Its thread works on the pool, so it goes first
  std::shared_ptr<DiskWriter> writer_;
  std::shared_ptr<TieredLookup> tiered_;
  StoreCounters counted_;  // what the metrics have seen so far
  uint64_t counted_torn_ = 0;
  boost::asio::steady_timer timer_;
  std::optional<TimePoint> armed_;
};

}  // namespace lowkey::kvstore
