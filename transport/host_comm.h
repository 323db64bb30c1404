// Collectives between the ranks of one replica on host memory (MPI, or threads in one process).
// Every call has a deadline: a dead or stopped peer makes it return kDeadlineExceeded instead of hanging
// (blocking MPI collectives hang for good). After an error the communicator is broken: report and _exit.
// Thread rule: only the step thread calls these.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"

namespace lowkey::transport {

class HostComm {
 public:
  virtual ~HostComm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual Status all_reduce_sum(std::span<float> data, Deadline deadline) = 0;  // in place
  // Root receives size() * mine.size() floats, by rank; `all` is ignored elsewhere.
  virtual Status gather(std::span<const float> mine, std::span<float> all, int root, Deadline deadline) = 0;
  virtual Status barrier(Deadline deadline) = 0;
  // Start-up exchange of small strings (addresses, fingerprints): element i comes from rank i.
  virtual Result<std::vector<std::string>> all_gather(const std::string& mine, Deadline deadline) = 0;
};

}  // namespace lowkey::transport
