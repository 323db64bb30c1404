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
// Strings are exchanged at start, where others may load for minutes.
constexpr auto kLongNap = std::chrono::milliseconds(1);

constexpr int kLengthTag = 1, kBytesTag = 2;

// From rank to rank instead of by a collective: when it is late, it is known who has said nothing.
class StringExchange {
 public:
  StringExchange(MPI_Comm comm, int rank, const std::string& mine, std::vector<std::string>* all)
      : comm_(comm),
        rank_(rank),
        length_(static_cast<int>(mine.size())),
        mine_(mine),
        all_(*all),
        lengths_(all->size()),
        states_(all->size(), State::kNothing),
        receives_(all->size(), MPI_REQUEST_NULL) {
    all_[rank] = mine;
    states_[rank] = State::kHeard;
  }

  Status begin() {
    for (int other = 0; other < size(); ++other) {
      if (other == rank_) continue;
      LOWKEY_TRY(mpi_status(
          MPI_Irecv(&lengths_[other], 1, MPI_INT, other, kLengthTag, comm_, &receives_[other]), "receiving"));
      LOWKEY_TRY(mpi_status(MPI_Isend(&length_, 1, MPI_INT, other, kLengthTag, comm_, &sends_.emplace_back()),
                            "sending"));
      LOWKEY_TRY(mpi_status(
          MPI_Isend(mine_.data(), length_, MPI_BYTE, other, kBytesTag, comm_, &sends_.emplace_back()),
          "sending"));
    }
    return {};
  }

  // Takes what has come, and says whether all is done.
  Result<bool> poll() {
    bool all_heard = true;
    for (int other = 0; other < size(); ++other) {
      LOWKEY_TRY(receive(other));
      all_heard = all_heard && states_[other] == State::kHeard;
    }
    int sent = 0;
    LOWKEY_TRY(mpi_status(
        MPI_Testall(static_cast<int>(sends_.size()), sends_.data(), &sent, MPI_STATUSES_IGNORE), "sending"));
    return all_heard && sent;
  }

  std::vector<int> silent() const {
    std::vector<int> ranks;
    for (int other = 0; other < size(); ++other)
      if (states_[other] != State::kHeard) ranks.push_back(other);
    return ranks;
  }

 private:
  enum class State { kNothing, kLength, kHeard };

  int size() const { return static_cast<int>(all_.size()); }

  Status receive(int other) {
    while (states_[other] != State::kHeard) {
      int finished = 0;
      LOWKEY_TRY(mpi_status(MPI_Test(&receives_[other], &finished, MPI_STATUS_IGNORE), "receiving"));
      if (!finished) return {};
      if (states_[other] == State::kLength) {
        states_[other] = State::kHeard;
        continue;
      }
      states_[other] = State::kLength;
      all_[other].resize(lengths_[other]);
      LOWKEY_TRY(mpi_status(MPI_Irecv(all_[other].data(), lengths_[other], MPI_BYTE, other, kBytesTag, comm_,
                                      &receives_[other]),
                            "receiving"));
    }
    return {};
  }

  const MPI_Comm comm_;
  const int rank_;
  const int length_;
  const std::string& mine_;
  std::vector<std::string>& all_;
  std::vector<int> lengths_;
  std::vector<State> states_;
  std::vector<MPI_Request> receives_;  // of the length, then of the bytes
  std::vector<MPI_Request> sends_;
};

}  // namespace

MpiComm::MpiComm(MPI_Comm comm, std::shared_ptr<bool> broken) : comm_(comm), broken_(std::move(broken)) {
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
}

MpiComm::~MpiComm() {
  if (!*broken_ && comm_ != MPI_COMM_WORLD) MPI_Comm_free(&comm_);
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
  if (*broken_) return Error{Code::kUnavailable, "all-gather after an earlier failure"};
  std::vector<std::string> all(size_);
  const Status status = exchange(mine, &all, deadline);
  if (status.ok()) return all;
  *broken_ = true;
  return status.error();
}

Status MpiComm::exchange(const std::string& mine, std::vector<std::string>* all, Deadline deadline) {
  const TimePoint start = Clock::now();
  StringExchange exchange(comm_, rank_, mine, all);
  LOWKEY_TRY(exchange.begin());
  for (;;) {
    LOWKEY_ASSIGN(done, exchange.poll());
    if (done) return {};
    if (deadline.passed()) {
      const std::vector<int> silent = exchange.silent();
      if (silent.empty())
        return Error{
            Code::kDeadlineExceeded, "what was said to the other ranks did not get there in time", {}};
      return Error{Code::kDeadlineExceeded,
                   fmt::format("rank{} {} {} been silent for {:.0f} s", silent.size() > 1 ? "s" : "",
                               fmt::join(silent, ", "), silent.size() > 1 ? "have" : "has",
                               seconds(Clock::now() - start)),
                   {}};
    }
    if (Clock::now() - start < kPatience) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(kLongNap);
    }
  }
}

}  // namespace lowkey::transport
