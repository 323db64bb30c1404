// HostComm over an MPI communicator: nonblocking collectives polled to the deadline.
#pragma once

#include <mpi.h>

#include <memory>

#include "transport/host_comm.h"

namespace lowkey::transport {

class MpiComm final : public HostComm {
 public:
  // Takes over the communicator, unless it is MPI's own world. `broken` is shared by all communicators of the
  // process (mpi_runtime.h).
  MpiComm(MPI_Comm comm, std::shared_ptr<bool> broken);
  ~MpiComm() override;
  MpiComm(const MpiComm&) = delete;
  MpiComm& operator=(const MpiComm&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Status all_reduce_sum(std::span<float> data, Deadline deadline) override;
  Status gather(std::span<const float> mine, std::span<float> all, int root, Deadline deadline) override;
  Status barrier(Deadline deadline) override;
  Result<std::vector<std::string>> all_gather(const std::string& mine, Deadline deadline) override;

 private:
  // `start` begins a nonblocking collective.
  template <class Start>
  Status run(const char* what, Deadline deadline, Start start);
  Status wait(const char* what, MPI_Request request, Deadline deadline);
  Status exchange(const std::string& mine, std::vector<std::string>* all, Deadline deadline);

  MPI_Comm comm_;
  const std::shared_ptr<bool> broken_;
  int rank_ = 0, size_ = 1;
};

}  // namespace lowkey::transport
