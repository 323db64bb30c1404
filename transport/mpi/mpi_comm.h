// HostComm on an MPI communicator: non-blocking collectives, polled to a deadline. A blocking one hangs for
// good, at full CPU, when a peer dies (measured with Open MPI 4.1).
#pragma once

#include <mpi.h>

#include <memory>

#include "transport/host_comm.h"

namespace lowkey::transport {

// The one mapping of MPI's error codes.
Status mpi_status(int code, const char* what);

class MpiComm final : public HostComm {
 public:
  // Owns `comm` (freed with the object, unless it is MPI_COMM_WORLD or a collective on it has failed).
  explicit MpiComm(MPI_Comm comm);
  ~MpiComm() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Status all_reduce_sum(std::span<float> data, Deadline deadline) override;
  Status gather(std::span<const float> mine, std::span<float> all, int root, Deadline deadline) override;
  Status barrier(Deadline deadline) override;
  Result<std::vector<std::string>> all_gather(const std::string& mine, Deadline deadline) override;

 private:
  // Polls until the request completes. After a failure the communicator is broken for good: the request, and
  // the buffers MPI may still write to, are abandoned, and the caller ends the process.
  Status wait(int started, MPI_Request* request, Deadline deadline, const char* what);

  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 1;
  bool broken_ = false;
};

}  // namespace lowkey::transport
