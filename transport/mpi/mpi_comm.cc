#include "transport/mpi/mpi_comm.h"

#include <sched.h>

#include <thread>

#include "transport/mpi/mpi_status.h"

namespace lowkey::transport {
namespace {

// Ranks share cores: after this many polls without success (some 20 us) the core goes to whoever wants it.
constexpr int kPollsBeforeYield = 200;
// A rank this late is loading a model or computing a long chunk. Polling on, even with yields, takes from it
// the core that it may need (ranks waiting for one that loads made starts on a loaded machine ten times
// longer), and a nap of 2 % of what was waited already delays nobody.
constexpr auto kPatience = std::chrono::milliseconds(10);
constexpr auto kNap = std::chrono::microseconds(200);

}  // namespace

MpiComm::MpiComm(MPI_Comm comm, std::shared_ptr<bool> broken) : comm_(comm), broken_(std::move(broken)) {
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
}

MpiComm::~MpiComm() {
  if (!*broken_) MPI_Comm_free(&comm_);
}

template <class Start>
Status MpiComm::run(const char* what, Deadline deadline, Start start) {
  if (*broken_) return Error{Code::kUnavailable, fmt::format("{} after an earlier failure", what)};
  MPI_Request request = MPI_REQUEST_NULL;
  Status status = mpi_status(start(&request), what);
  if (status.ok()) status = wait(what, request, deadline);
  if (!status.ok()) *broken_ = true;
  return status;
}

Status MpiComm::wait(const char* what, MPI_Request request, Deadline deadline) {
  const TimePoint start = Clock::now();
  for (int polls = 0;; ++polls) {
    int finished = 0;
    LOWKEY_TRY(mpi_status(MPI_Test(&request, &finished, MPI_STATUS_IGNORE), what));
    if (finished) return {};
    if (polls < kPollsBeforeYield) continue;
    if (deadline.passed()) {
      return Error{Code::kDeadlineExceeded,
                   fmt::format("{} of {} ranks did not finish before its deadline", what, size_)};
    }
    if (Clock::now() - start < kPatience) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(kNap);
    }
  }
}

Status MpiComm::all_reduce_sum(std::span<float> data, Deadline deadline) {
  if (size_ == 1) return {};
  return run("all-reduce", deadline, [&](MPI_Request* request) {
    return MPI_Iallreduce(MPI_IN_PLACE, data.data(), static_cast<int>(data.size()), MPI_FLOAT, MPI_SUM, comm_,
                          request);
  });
}

Status MpiComm::gather(std::span<const float> mine, std::span<float> all, int root, Deadline deadline) {
  LOWKEY_CHECK(rank_ != root || all.size() == mine.size() * size_, "gather into {} floats", all.size());
  const int count = static_cast<int>(mine.size());
  return run("gather", deadline, [&](MPI_Request* request) {
    return MPI_Igather(mine.data(), count, MPI_FLOAT, all.data(), count, MPI_FLOAT, root, comm_, request);
  });
}

Status MpiComm::barrier(Deadline deadline) {
  return run("barrier", deadline, [&](MPI_Request* request) { return MPI_Ibarrier(comm_, request); });
}

Result<std::vector<std::string>> MpiComm::all_gather(const std::string& mine, Deadline deadline) {
  const int length = static_cast<int>(mine.size());
  std::vector<int> lengths(size_), offsets(size_);
  LOWKEY_TRY(run("all-gather of lengths", deadline, [&](MPI_Request* request) {
    return MPI_Iallgather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, comm_, request);
  }));
  int total = 0;
  for (int i = 0; i < size_; ++i) {
    offsets[i] = total;
    total += lengths[i];
  }
  std::string bytes(total, '\0');
  LOWKEY_TRY(run("all-gather", deadline, [&](MPI_Request* request) {
    return MPI_Iallgatherv(mine.data(), length, MPI_BYTE, bytes.data(), lengths.data(), offsets.data(),
                           MPI_BYTE, comm_, request);
  }));
  std::vector<std::string> all;
  for (int i = 0; i < size_; ++i) all.push_back(bytes.substr(offsets[i], lengths[i]));
  return all;
}

}  // namespace lowkey::transport
