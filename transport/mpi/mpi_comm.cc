#include "transport/mpi/mpi_comm.h"

#include <sched.h>

#include <climits>
#include <numeric>

namespace lowkey::transport {
namespace {

// A collective of two ranks that run takes some microseconds; after that many polls the peer is probably
// waiting for this core, and spinning on would only delay it.
constexpr int kSpins = 200;

}  // namespace

Status mpi_status(int code, const char* what) {
  if (code == MPI_SUCCESS) return {};
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
  return Error{Code::kUnavailable, fmt::format("{}: {}", what, std::string(text, length)), {}};
}

MpiComm::MpiComm(MPI_Comm comm) : comm_(comm) {
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
}

MpiComm::~MpiComm() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (comm_ != MPI_COMM_WORLD && !broken_ && finalized == 0) MPI_Comm_free(&comm_);
}

Status MpiComm::wait(int started, MPI_Request* request, Deadline deadline, const char* what) {
  int done = 0;
  Status status = mpi_status(started, what);
  for (int polls = 0; status.ok() && done == 0; ++polls) {
    status = mpi_status(MPI_Test(request, &done, MPI_STATUS_IGNORE), what);
    if (done != 0 || polls < kSpins) continue;
    if (deadline.passed()) {
      status = Error{
          Code::kDeadlineExceeded,
          fmt::format("{} among {} ranks did not finish before its deadline: a rank is dead, stopped or late",
                      what, size_),
          {}};
    }
    sched_yield();
  }
  broken_ = broken_ || !status.ok();
  return status;
}

Status MpiComm::all_reduce_sum(std::span<float> data, Deadline deadline) {
  if (size_ == 1) return {};
  LOWKEY_CHECK(data.size() <= INT_MAX, "{} floats in one all-reduce", data.size());
  MPI_Request request = MPI_REQUEST_NULL;
  const int started = MPI_Iallreduce(MPI_IN_PLACE, data.data(), static_cast<int>(data.size()), MPI_FLOAT,
                                     MPI_SUM, comm_, &request);
  return wait(started, &request, deadline, "all-reduce");
}

Status MpiComm::gather(std::span<const float> mine, std::span<float> all, int root, Deadline deadline) {
  LOWKEY_CHECK(mine.size() <= INT_MAX, "{} floats in one gather", mine.size());
  LOWKEY_CHECK(rank_ != root || all.size() == mine.size() * size_, "room for {} floats, expected {}",
               all.size(), mine.size() * size_);
  const int count = static_cast<int>(mine.size());
  MPI_Request request = MPI_REQUEST_NULL;
  const int started =
      MPI_Igather(mine.data(), count, MPI_FLOAT, all.data(), count, MPI_FLOAT, root, comm_, &request);
  return wait(started, &request, deadline, "gather");
}

Status MpiComm::barrier(Deadline deadline) {
  MPI_Request request = MPI_REQUEST_NULL;
  return wait(MPI_Ibarrier(comm_, &request), &request, deadline, "barrier");
}

Result<std::vector<std::string>> MpiComm::all_gather(const std::string& mine, Deadline deadline) {
  LOWKEY_CHECK(mine.size() <= 1 << 20, "{} bytes in one exchange", mine.size());
  const int length = static_cast<int>(mine.size());
  std::vector<int> lengths(size_);
  MPI_Request request = MPI_REQUEST_NULL;
  int started = MPI_Iallgather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, comm_, &request);
  LOWKEY_TRY(wait(started, &request, deadline, "exchange of lengths"));
  std::vector<int> offsets(size_);
  std::exclusive_scan(lengths.begin(), lengths.end(), offsets.begin(), 0);
  std::string joined(offsets.back() + lengths.back(), '\0');
  started = MPI_Iallgatherv(mine.data(), length, MPI_CHAR, joined.data(), lengths.data(), offsets.data(),
                            MPI_CHAR, comm_, &request);
  LOWKEY_TRY(wait(started, &request, deadline, "exchange of strings"));
  std::vector<std::string> all;
  for (int rank = 0; rank < size_; ++rank) all.push_back(joined.substr(offsets[rank], lengths[rank]));
  return all;
}

}  // namespace lowkey::transport
