#include "transport/mpi/mpi_runtime.h"

#include <mpi.h>

#include <cstdlib>
#include <string_view>

#include "base/exit_now.h"
#include "base/log.h"
#include "base/watchdog.h"
#include "transport/mpi/mpi_comm.h"
#include "transport/mpi/mpi_status.h"

namespace lowkey::transport {
namespace {

void warn_without_recovery(int size) {
  const char* flag = std::getenv("OMPI_MCA_orte_enable_recovery");
  if (size == 1 || (flag && std::string_view(flag) == "1")) return;
  spdlog::warn("started without mpirun --enable-recovery: one dead rank will end all {}", size);
}

// Ends this process when a call that blocks waits for too long.
class BlockingCall {
 public:
  explicit BlockingCall(const char* what, Duration patience = MpiRuntime::kPatience)
      : watchdog_(patience, [what, patience] {
          spdlog::error(
              "{}: a rank of this job has not come to it for {:.0f} s, it is gone or stopped: this rank ends",
              what, seconds(patience));
          exit_now(4);
        }) {
    watchdog_.begin();
  }
  ~BlockingCall() { watchdog_.end(); }

 private:
  Watchdog watchdog_;
};

}  // namespace

Result<std::unique_ptr<MpiRuntime>> MpiRuntime::start() {
  int given = MPI_THREAD_SINGLE;
  // Without mpirun, Open MPI would start a daemon of its own beside this process, which needs none.
  setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
  // Nor does hwloc, which MPI starts, need to ask an X server for GPUs: where DISPLAY names a host that is
  // not there, it would wait for it.
  setenv("HWLOC_COMPONENTS", "-gl", 0);
  {
    const BlockingCall blocking("MPI_Init", kStartPatience);
    // Serialized, not funneled: the step thread makes the calls, the main thread starts and ends.
    LOWKEY_TRY(mpi_status(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &given), "MPI_Init"));
  }
  std::unique_ptr<MpiRuntime> runtime(new MpiRuntime());
  if (given < MPI_THREAD_SERIALIZED) return Error{Code::kInternal, "this MPI has no thread support"};
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &runtime->rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &runtime->size_);
  warn_without_recovery(runtime->rank_ == 0 ? runtime->size_ : 1);
  return runtime;
}

MpiRuntime::~MpiRuntime() {
  if (is_abandoned()) return;
  const BlockingCall blocking("MPI_Finalize");
  MPI_Finalize();
}

std::unique_ptr<HostComm> MpiRuntime::world() {
  return std::make_unique<MpiComm>(MPI_COMM_WORLD, broken_);
}

Result<std::unique_ptr<HostComm>> MpiRuntime::split(int color, int key) {
  const BlockingCall blocking("dividing the ranks");
  MPI_Comm comm = MPI_COMM_NULL;
  LOWKEY_TRY(mpi_status(MPI_Comm_split(MPI_COMM_WORLD, color < 0 ? MPI_UNDEFINED : color, key, &comm),
                        "split of ranks"));
  if (comm == MPI_COMM_NULL) return std::unique_ptr<HostComm>();
  return std::unique_ptr<HostComm>(std::make_unique<MpiComm>(comm, broken_));
}

}  // namespace lowkey::transport
