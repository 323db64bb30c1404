// What data planes share: batches with one flush, one `done`, a deadline, and quarantine of the local memory
// of failed batches until the transport has let go of it. Implementations say how one transfer and a flush
// start.
//
// Shared-memory transfers run on the calling thread, so a large batch is started in slices with the event
// loop's other work (heartbeats) in between.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <set>

#include "transport/data_plane.h"

namespace lowkey::transport {

struct SessionContext;
class Session;

class PoolView : public RemotePool {
 public:
  PoolView(uint64_t connection_id, uint64_t size) : connection_id_(connection_id), size_(size) {}
  uint64_t size() const override { return size_; }
  uint64_t connection_id() const { return connection_id_; }

 private:
  const uint64_t connection_id_;
  const uint64_t size_;
};

enum class TransferKind { kPut, kGet };

class BatchPlane : public DataPlane {
 public:
  explicit BatchPlane(std::shared_ptr<SessionContext> context);
  ~BatchPlane() override;

  void put(const std::shared_ptr<RemotePool>& pool, std::vector<Transfer> batch, Deadline deadline,
           std::shared_ptr<void> keep_alive, std::function<void(Status)> done) override;
  void get(const std::shared_ptr<RemotePool>& pool, std::vector<Transfer> batch, Deadline deadline,
           std::shared_ptr<void> keep_alive, std::function<void(Status)> done) override;

 protected:
  using Completion = std::function<void(Status)>;

  // Starts a transfer, or a flush of all transfers to the pool's process. True: `completed` runs later, from
  // the event loop; false: it is done already, and `completed` is dropped.
  virtual Result<bool> start(PoolView& pool, TransferKind kind, const Transfer& transfer,
                             Completion completed) = 0;
  virtual Result<bool> flush(PoolView& pool, Completion completed) = 0;
  // After the connection's batches have been failed.
  virtual void connection_down(uint64_t connection_id) = 0;

  SessionContext& context() { return *context_; }
  // The connection behind the interface, if it is up and belongs to the control plane of this data plane.
  Result<std::shared_ptr<Session>> session_of(const ConnectionPtr& peer) const;

 private:
  struct Batch;
  using BatchPtr = std::shared_ptr<Batch>;

  void submit(TransferKind kind, const std::shared_ptr<RemotePool>& pool, std::vector<Transfer> transfers,
              Deadline deadline, std::shared_ptr<void> keep_alive, std::function<void(Status)> done);
  Status admit(const Batch& batch) const;
  void advance(const BatchPtr& batch);
  void start_slice(const BatchPtr& batch);
  void completed(const BatchPtr& batch, const Status& status);
  void report(const BatchPtr& batch, Status status);
  void release_if_settled(const BatchPtr& batch);
  void fail_connection(uint64_t connection_id, const Error& error);

  const std::shared_ptr<SessionContext> context_;
  std::set<BatchPtr> batches_;  // unreported or quarantined
};

}  // namespace lowkey::transport
