// The engine of a replica's other ranks: executes what the leader plans, in the order in which it arrives.
// Thread rule: the step thread; `done` may be called on any.
#pragma once

#include "worker/engine/executor.h"

namespace lowkey::worker {

class Follower {
 public:
  Follower(const ExecutorOptions& options, Model& model, kvstore::PageMemory& memory,
           transport::HostComm& comm, EnginePorts ports, monitoring::Metrics& metrics)
      : ports_(std::move(ports)), executor_(options, model, memory, comm, ports_, metrics) {}

  // An error means that the step is lost and the process should go.
  Status execute(const wire::StepPlan& plan) { return executor_.execute(plan); }
  void restore(const wire::RestoreCommand& command, std::function<void(const wire::RestoreResult&)> done) {
    executor_.pages().restore(command, std::move(done));
  }
  size_t known_sequences() const { return executor_.known_sequences(); }

 private:
  const EnginePorts ports_;
  Executor executor_;
};

}  // namespace lowkey::worker
