// MPI's life in this process. MPI launches the ranks, exchanges their addresses at start and does the CPU
// collectives inside a replica; nothing else goes through it. Works without mpirun too, as a job of one rank.
// Thread rule: MPI_THREAD_FUNNELED; everything on the thread that called init(), a worker's step thread.
#pragma once

#include <memory>

#include "base/result.h"
#include "transport/host_comm.h"

namespace lowkey::transport {

class MpiRuntime {
 public:
  // Warns (rank 0) when the job was started without --enable-recovery: one dead rank then ends all of them.
  static Result<std::unique_ptr<MpiRuntime>> init();
  ~MpiRuntime();  // MPI_Finalize: waits for every rank of the job
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  int world_rank() const { return world_->rank(); }
  int world_size() const { return world_->size(); }
  const std::shared_ptr<HostComm>& world() const { return world_; }

  // Collective over all ranks: those with the same color form a communicator, ordered by key. A negative
  // color: none.
  Result<std::shared_ptr<HostComm>> split(int color, int key);

  // Ends the process at once with this exit status, without MPI_Finalize, which would wait for ranks that are
  // gone.
  [[noreturn]] static void abandon(int exit_status);

 private:
  MpiRuntime() = default;
  std::shared_ptr<HostComm> world_;
};

}  // namespace lowkey::transport
