#include "transport/mpi/mpi_runtime.h"

#include <mpi.h>

#include <cstdlib>
#include <string_view>

#include "base/log.h"
#include "transport/mpi/mpi_comm.h"
#include "transport/mpi/mpi_status.h"

namespace lowkey::transport {
namespace {

void warn_without_recovery(int size) {
  const char* flag = std::getenv("OMPI_MCA_orte_enable_recovery");
  if (size == 1 || (flag && std::string_view(flag) == "1")) return;
  spdlog::warn("started without mpirun --enable-recovery: one dead rank will end all {}", size);
}

}  // namespace

Result<std::unique_ptr<MpiRuntime>> MpiRuntime::start() {
  int given = MPI_THREAD_SINGLE;
  // Without mpirun, Open MPI would start a daemon of its own beside this process, which needs none.
  setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
  // Serialized, not funneled: the step thread makes the calls, the main thread starts and ends.
  LOWKEY_TRY(mpi_status(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &given), "MPI_Init"));
  std::unique_ptr<MpiRuntime> runtime(new MpiRuntime());
  if (given < MPI_THREAD_SERIALIZED) return Error{Code::kInternal, "this MPI has no thread support"};
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &runtime->rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &runtime->size_);
  warn_without_recovery(runtime->rank_ == 0 ? runtime->size_ : 1);

  MPI_Comm host = MPI_COMM_NULL;
  LOWKEY_TRY(mpi_status(
      MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, runtime->rank_, MPI_INFO_NULL, &host),
      "ranks per host"));
  MPI_Comm_rank(host, &runtime->local_rank_);
  MPI_Comm_size(host, &runtime->local_size_);
  MPI_Comm_free(&host);
  return runtime;
}

MpiRuntime::~MpiRuntime() {
  if (finalize_ && !*broken_) MPI_Finalize();
}

Result<std::unique_ptr<HostComm>> MpiRuntime::split(int color, int key) {
  MPI_Comm comm = MPI_COMM_NULL;
  LOWKEY_TRY(mpi_status(MPI_Comm_split(MPI_COMM_WORLD, color < 0 ? MPI_UNDEFINED : color, key, &comm),
                        "split of ranks"));
  if (comm == MPI_COMM_NULL) return std::unique_ptr<HostComm>();
  return std::unique_ptr<HostComm>(std::make_unique<MpiComm>(comm, broken_));
}

}  // namespace lowkey::transport
