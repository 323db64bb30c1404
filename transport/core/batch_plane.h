// What data planes share: batches with one flush, one `done`, a deadline, and quarantine of the local memory
// of failed batches until the transport has let go of it. Implementations say how one transfer and a flush
// start.
//
// Shared-memory transfers run on the calling thread, so a large batch is started in slices with the event
// loop's other work (heartbeats) in between. Over a network heartbeats stand in line behind the transfers
// that were started, and so do the peer's behind what it was asked for: of one connection only so many bytes
// are on their way that the line is short on a slow link, too, and batches take turns.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <map>
#include <memory>
#include <set>

#include "transport/data_plane.h"

namespace lowkey::transport {

struct SessionContext;
class Session;

class PoolView : public RemotePool {
 public:
  // `scratch_bytes` behind the pool may be written to measure the path; 0: it is not measured.
  PoolView(uint64_t connection_id, uint64_t size, uint64_t scratch_bytes)
      : connection_id_(connection_id), size_(size), scratch_bytes_(scratch_bytes) {}
  uint64_t size() const override { return size_; }
  const char* transport() const override { return to_string(path()); }
  virtual Path path() const = 0;
  virtual bool is_presumed() const { return false; }  // the path cannot be told
  virtual std::string device() const = 0;
  // Whether transfers may name a GPU's memory.
  virtual bool reaches_gpu_memory() const { return false; }
  uint64_t connection_id() const { return connection_id_; }
  uint64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  const uint64_t connection_id_;
  const uint64_t size_;
  const uint64_t scratch_bytes_;
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
  // Says what path this connection's transfers take and measures it, once; implementations call it in open().
  void attest(const std::shared_ptr<Session>& session, const std::shared_ptr<PoolView>& pool);
  // The connection behind the interface, if it is up and belongs to the control plane of this data plane.
  Result<std::shared_ptr<Session>> session_of(const ConnectionPtr& peer) const;

 private:
  // Measuring batches may reach the scratch range, and leave the counters alone.
  enum class Purpose { kUse, kMeasure };
  struct Batch;
  using BatchPtr = std::shared_ptr<Batch>;

  void submit(TransferKind kind, const std::shared_ptr<RemotePool>& pool, std::vector<Transfer> transfers,
              Deadline deadline, std::shared_ptr<void> keep_alive, std::function<void(Status)> done,
              Purpose purpose = Purpose::kUse);
  void attested(const Attestation& attestation);
  Status admit(const Batch& batch) const;
  void advance(const BatchPtr& batch);
  void start_slice(const BatchPtr& batch);
  bool take_turn(const BatchPtr& batch, uint64_t bytes);  // false: it waits for room
  void go_on(uint64_t connection_id);                     // those who wait, where there is room
  void completed(const BatchPtr& batch, uint64_t bytes, const Status& status);
  void report(const BatchPtr& batch, Status status);
  void count(const Batch& batch, bool succeeded);
  void release_if_settled(const BatchPtr& batch);
  void fail_connection(uint64_t connection_id, const Error& error);

  const std::shared_ptr<SessionContext> context_;
  // Of one connection: what was started and is not completed, and who waits for room, in turn.
  struct Way {
    uint64_t bytes = 0;
    std::deque<BatchPtr> waiting;
  };
  std::map<uint64_t, Way> ways_;  // of connections that are up
  std::set<BatchPtr> batches_;    // unreported or quarantined
  std::set<uint64_t> attested_;   // connections up whose path is known or being measured
  const std::shared_ptr<BatchPlane*>
      self_;  // for measurements that end after the plane: then it holds nullptr
};

}  // namespace lowkey::transport
