// The ranks of mpi_job_test: each prints "rank R: ok" or what is wrong.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "transport/mpi/mpi_runtime.h"

#ifdef __SANITIZE_ADDRESS__
// Open MPI leaks in plugins that it unloads, where no suppression can name it.
extern "C" const char* __asan_default_options() {
  return "detect_leaks=0";
}
#endif

#ifdef __SANITIZE_THREAD__
// A lock order inside Open MPI.
extern "C" const char* __tsan_default_suppressions() {
  return "deadlock:mca_btl_tcp\n";
}
#endif

namespace {

using namespace lowkey;
using namespace lowkey::transport;
using namespace std::chrono_literals;

// Of a series of collectives this is the one that a rank is lost in. Until then nobody is, however long it is
// not scheduled.
constexpr int kLossRound = 20;
Duration patience(int round, Duration at_a_loss) {
  return round < kLossRound ? 30s : at_a_loss;
}

int say(int rank, const std::string& what) {
  const std::string line = "rank " + std::to_string(rank) + ": " + what + "\n";
  (void)!write(1, line.data(), line.size());
  return what == "ok" ? 0 : 1;
}

std::string collectives(MpiRuntime& mpi) {
  const Deadline deadline = Deadline::in(30s);
  const auto world = mpi.world();
  for (const size_t times : {3, 0, 1, 200'000}) {  // the last is more than travels without being asked for
    auto names = world->all_gather(std::string(mpi.rank() * times, 'a' + mpi.rank()), deadline);
    if (!names.ok()) return names.error().message;
    for (int i = 0; i < mpi.size(); ++i) {
      if ((*names)[i] != std::string(i * times, 'a' + i)) return "all_gather";
    }
  }
  // All but the first and the last rank, in reverse order.
  const bool inside = mpi.rank() > 0 && mpi.rank() < mpi.size() - 1;
  auto group = mpi.split(inside ? 7 : -1, -mpi.rank());
  if (!group.ok()) return group.error().message;
  if (inside != (*group != nullptr)) return "split";
  if (inside) {
    HostComm& comm = **group;
    if (comm.size() != mpi.size() - 2 || comm.rank() != mpi.size() - 2 - mpi.rank())
      return "order of the split";
    for (int round = 0; round < 100; ++round) {
      std::vector<float> data(576, 1.0f + comm.rank());
      if (Status s = comm.all_reduce_sum(data, deadline); !s.ok()) return s.error().message;
      const float expected = comm.size() * (comm.size() + 1) / 2.0f;
      for (float value : data) {
        if (value != expected) return "all_reduce_sum";
      }
    }
    const std::vector<float> mine(3, 10.0f * comm.rank());
    std::vector<float> all(comm.rank() == 1 ? 3 * comm.size() : 0);
    if (Status s = comm.gather(mine, all, 1, deadline); !s.ok()) return s.error().message;
    for (size_t i = 0; i < all.size(); ++i) {
      if (all[i] != 10.0f * (i / 3)) return "gather";
    }
  }
  if (Status s = world->barrier(deadline); !s.ok()) return s.error().message;
  return "ok";
}

// One rank stops between two exchanges: the others say which.
int name_the_silent(MpiRuntime& mpi) {
  const auto world = mpi.world();
  for (int round = 0;; ++round) {
    if (round == kLossRound && mpi.rank() == 2) {
      say(2, "pid " + std::to_string(getpid()));
      raise(SIGSTOP);
    }
    const auto all = world->all_gather("here", Deadline::in(patience(round, 4s)));
    if (all.ok()) continue;
    const bool named = all.error().message.starts_with("rank 2 has been silent for ");
    const int code = say(mpi.rank(), named ? "ok" : all.error().message);
    mpi.abandon();
    _exit(code);
  }
}

// One rank ends or stops in the middle of a series of all-reduces; the others must learn of it by the
// deadline.
int lose_a_rank(MpiRuntime& mpi, int signal) {
  const auto world = mpi.world();
  std::vector<float> data(4096, 1.0f);
  for (int round = 0;; ++round) {
    if (round == kLossRound && mpi.rank() == 1) {
      say(1, "pid " + std::to_string(getpid()));
      raise(signal);
    }
    const Status status = world->all_reduce_sum(data, Deadline::in(patience(round, 1s)));
    if (status.ok()) continue;
    const bool in_time = round == kLossRound && status.error().code == Code::kDeadlineExceeded;
    const Status later = world->barrier(Deadline::in(30s));
    const int code = say(mpi.rank(), !in_time     ? status.error().message
                                     : later.ok() ? "barrier after failure"
                                                  : "ok");
    mpi.abandon();
    _exit(code);
  }
}

}  // namespace

int main(int, char** arguments) {
  auto mpi = MpiRuntime::start();
  if (!mpi.ok()) return say(-1, mpi.error().message);
  const std::string mode = arguments[1];
  if (mode == "kill") return lose_a_rank(**mpi, SIGKILL);
  if (mode == "silent") return name_the_silent(**mpi);
  if (mode == "stop") return lose_a_rank(**mpi, SIGSTOP);
  if (mode == "alone")
    return say((*mpi)->rank(), (*mpi)->size() == 1 && (*mpi)->split(0, 0).ok() ? "ok" : "not alone");
  return say((*mpi)->rank(), collectives(**mpi));
}
