// MPI in this process: launch, ranks, communicators. Nothing else of the project calls MPI.
//
// Thread rule: one thread at a time, made and destroyed on the same (main) thread.
#pragma once

#include <memory>

#include "base/deadline.h"
#include "base/result.h"
#include "transport/host_comm.h"

namespace lowkey::transport {

class MpiRuntime {
 public:
  // MPI's blocking calls, start and end and split(), have no deadline: who waits in one for longer, because a
  // rank is gone or stopped, says so, and its process ends with 4. Starting may take a host that resolves no
  // names as long as its resolver tries: 5 s, a few times.
  static constexpr Duration kStartPatience = std::chrono::seconds(30);
  static constexpr Duration kPatience = std::chrono::seconds(10);

  // Works without mpirun too (one rank). Warns when more than one rank runs without --enable-recovery: then
  // one dead rank ends the whole job.
  static Result<std::unique_ptr<MpiRuntime>> start();
  // Finalizes, which waits for all other ranks (kPatience); see abandon().
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // All ranks of the job.
  std::unique_ptr<HostComm> world();
  // Collective over all ranks of the job, and blocking (MPI has no other): for start-up only, while everybody
  // has just been heard. Ranks of equal color get a communicator, ordered by key; a negative color gets none
  // (null). The communicators go before the runtime.
  Result<std::unique_ptr<HostComm>> split(int color, int key);

  // For every path on which a rank is gone or stopped: MPI_Finalize would wait for it for good. Call, then
  // _exit.
  void abandon() { finalize_ = false; }
  // So, or because a communicator has failed.
  bool is_abandoned() const { return !finalize_ || *broken_; }

 private:
  MpiRuntime() = default;

  int rank_ = 0, size_ = 1;
  bool finalize_ = true;
  // Set by the first communicator that fails. Operations that missed their deadline may still write to their
  // buffers, but only from inside MPI calls: so none is made any more, by any communicator, nor is MPI
  // finalized.
  std::shared_ptr<bool> broken_ = std::make_shared<bool>(false);
};

}  // namespace lowkey::transport
