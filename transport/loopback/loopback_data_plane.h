// One-sided transfers inside one process: a copy, with the network's faults.
#pragma once

#include <map>
#include <memory>
#include <set>

#include "transport/core/batch_plane.h"

namespace lowkey::transport {

class LoopbackNetwork;

class LoopbackPool final : public MemoryPool {
 public:
  explicit LoopbackPool(size_t bytes);
  std::span<std::byte> bytes() override { return {memory_.get(), size_}; }
  std::string remote_handle() const override { return std::to_string(id_); }
  void set_id(uint64_t id) { id_ = id; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  const size_t size_;
  const std::unique_ptr<std::byte[], Free> memory_;  // page-aligned, as UCX's is
  uint64_t id_ = 0;
};

class LoopbackDataPlane final : public BatchPlane {
 public:
  LoopbackDataPlane(std::shared_ptr<SessionContext> context, std::shared_ptr<LoopbackNetwork> network);
  ~LoopbackDataPlane() override;

  std::string address() const override { return "loopback"; }
  Result<std::shared_ptr<MemoryPool>> allocate(size_t bytes) override;
  Result<std::shared_ptr<RemotePool>> open(const ConnectionPtr& peer, const std::string& data_address,
                                           const std::string& remote_handle) override;

 protected:
  Result<bool> start(PoolView& pool, TransferKind kind, const Transfer& transfer,
                     Completion completed) override;
  Result<bool> flush(PoolView& pool, Completion completed) override;
  void connection_down(uint64_t connection_id) override;

 private:
  const std::shared_ptr<LoopbackNetwork> network_;
  // A transfer that has not landed yet: it waits for its time, for the test, or for ever.
  struct Pending {
    uint64_t connection = 0;
    std::function<void()> copy;
    Completion completed;
  };
  uint64_t add_pending(uint64_t connection, std::function<void()> copy, Completion completed);
  std::function<void()> landing_of(uint64_t id);  // runs on this thread; nothing when it is gone by then

  uint64_t next_pending_ = 1;
  std::map<uint64_t, Pending> pending_;
  std::set<uint64_t> cut_;  // connections that break now
  const std::shared_ptr<LoopbackDataPlane*>
      self_;  // for landings after the plane's end: then it holds nullptr
};

}  // namespace lowkey::transport
