// The store's half of the worker <-> store protocol: answers reservations, commits, lookups and releases from
// a StoreIndex over one pool that workers write and read one-sidedly; the store's CPU never touches the
// slabs.
//
// A peer that dies loses its reservations and leases at once; others expire by a timer that runs only while
// there is something to expire. A malformed message closes its peer, with the reason. Thread rule: everything
// on the io_context's single thread.
#pragma once

#include <boost/asio/steady_timer.hpp>

#include <memory>
#include <string_view>

#include "base/deadline.h"
#include "base/result.h"
#include "kvstore/service/store_index.h"
#include "transport/control_plane.h"
#include "transport/data_plane.h"

namespace lowkey::monitoring {
class Metrics;
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
  };

  static Result<std::shared_ptr<StoreService>> make(boost::asio::io_context& io, transport::DataPlane& data,
                                                    monitoring::Metrics& metrics, const Options& options);

  // To be called from the ControlHandlers of the store's control plane. on_message() takes every message of a
  // worker; those of the coordinator are not the store's business.
  void on_up(const transport::ConnectionPtr& peer);  // tells workers about the pool
  void on_message(const transport::ConnectionPtr& peer, transport::MessageType type, std::string_view body);
  void on_down(const transport::ConnectionPtr& peer);

  StoreLedger ledger() const { return index_.ledger(); }

 private:
  StoreService(boost::asio::io_context& io, std::shared_ptr<transport::MemoryPool> pool,
               std::string data_address, monitoring::Metrics& metrics, const Options& options);

  Status handle(const transport::ConnectionPtr& peer, transport::MessageType type, std::string_view body);
  Status reserve(const transport::ConnectionPtr& peer, const wire::ReserveRequest& request);
  Status commit(const transport::ConnectionPtr& peer, const wire::CommitRequest& request);
  Status lookup(const transport::ConnectionPtr& peer, const wire::LookupRequest& request);
  bool commit_page(uint64_t owner, uint64_t reservation, std::string_view header);
  void settle();  // after every change: metrics and the expiry timer
  void arm();

  const Options options_;
  const std::shared_ptr<transport::MemoryPool> pool_;
  const std::string data_address_;
  monitoring::Metrics& metrics_;
  StoreIndex index_;
  StoreCounters counted_;  // what the metrics have seen so far
  boost::asio::steady_timer timer_;
  std::optional<TimePoint> armed_;
};

}  // namespace lowkey::kvstore
