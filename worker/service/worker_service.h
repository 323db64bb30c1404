// The I/O side of a worker: control messages in and out of its engine, pages to and from the stores, metrics.
// LeaderService (replica rank 0) and FollowerService add what they do with a step.
//
// Two threads: everything here runs on the I/O thread, except the engine ports, which the step thread calls
// and which only post. A lost peer of the replica, or the coordinator's death, ends the process: on_end tells
// how.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "kvstore/service/store_set.h"
#include "monitoring/metrics.h"
#include "transport/control_plane.h"
#include "transport/data_plane.h"
#include "transport/metrics_reporter.h"
#include "worker/engine/engine_ports.h"

namespace lowkey::worker {

class WorkerService {
 public:
  struct Options {
    int replica = 0;
    int replica_size = 1;
    kvstore::PageOrigin origin;
    kvstore::SpillFormat spill;                            // what the recipe says of spilled pages
    Duration transfer_deadline = std::chrono::seconds(5);  // of a spill or restore, beside its bytes
    std::string require_transport = "any";                 // base/serve_config.h; of every pair with a store
    // World ranks of the job's stores: with a required transport none may be unproven at the start. Unknown
    // to a replica that joins: expect_stores() tells.
    std::optional<std::set<int>> stores;
    // I/O thread: a store has come over another transport than the required one, and is hung up on.
    std::function<void(int rank)> on_refused = [](int) {};
    // I/O thread, once. Orderly (kCancelled): the coordinator ended the cluster.
    std::function<void(const Error&)> on_end;
  };

  WorkerService(boost::asio::io_context& io, monitoring::Metrics& metrics, Options options);
  virtual ~WorkerService();

  transport::ControlHandlers handlers();
  // The coordinator is lost, and another may connect: what this one asked for has nobody to go to. I/O
  // thread.
  virtual void forget_coordinator() {}
  // To a replica that joins: the stores that its cluster has now. I/O thread.
  void expect_stores(const std::set<int>& ranks);
  // Before the first message; both outlive the service.
  void attach(transport::ControlPlane& control, transport::DataPlane& data);

 protected:
  virtual void on_peer(
      const transport::ConnectionPtr& peer) = 0;  // a worker of this replica, or the coordinator
  virtual void on_message(const transport::ConnectionPtr& peer, transport::MessageType type,
                          std::string_view body) = 0;
  // The ports every rank has; the leader adds its own.
  void fill_ports(EnginePorts& ports);
  void end(const Error& reason);
  bool ended() const { return ended_; }
  // Whose transport is still to be told, where one is required; empty, or why the replica is not ready.
  std::string stores_unproven() const;
  const Options& options() const { return options_; }
  boost::asio::io_context& io() { return io_; }
  transport::MetricsReporter& reporter() { return reporter_; }
  // Runs `task` on the I/O thread, from any thread.
  void post(std::function<void()> task);

 private:
  void up(const transport::ConnectionPtr& peer);
  void message(const transport::ConnectionPtr& peer, transport::MessageType type, std::string_view body);
  void down(const transport::ConnectionPtr& peer, const Error& error);
  void count_stores();
  Deadline transfer_deadline(uint64_t bytes) const;
  void attested(const transport::ConnectionPtr& peer, const transport::Attestation& path);
  void check_proven();

  boost::asio::io_context& io_;
  monitoring::Metrics& metrics_;
  const Options options_;
  transport::MetricsReporter reporter_;
  std::unique_ptr<kvstore::StoreSet> stores_;
  std::set<int> proven_stores_;
  std::optional<std::set<int>> unproven_stores_;  // that the start waits for
  bool proven_ = false;                           // the start has waited for all of them
  std::vector<uint64_t> ready_stores_;            // as the step thread knows them by
  uint64_t store_changes_ = 0;
  std::atomic<uint64_t> store_set_ = 0;  // EnginePorts::stores
  bool ended_ = false;
};

}  // namespace lowkey::worker
