#include "transport/mpi/mpi_runtime.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/log.h"
#include "transport/mpi/mpi_comm.h"

namespace lowkey::transport {

Result<std::unique_ptr<MpiRuntime>> MpiRuntime::init() {
  int provided = MPI_THREAD_SINGLE;
  LOWKEY_TRY(
      mpi_status(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread"));
  if (provided < MPI_THREAD_FUNNELED) {
    return Error{Code::kInternal, "this MPI library does not support MPI_THREAD_FUNNELED", {}};
  }
  std::unique_ptr<MpiRuntime> runtime(new MpiRuntime);
  runtime->world_ = std::make_shared<MpiComm>(MPI_COMM_WORLD);
  const char* recovery = std::getenv("OMPI_MCA_orte_enable_recovery");
  const bool enabled = recovery != nullptr && std::string_view(recovery) != "0";
  if (!enabled && runtime->world_size() > 1 && runtime->world_rank() == 0) {
    spdlog::warn(
        "started without mpirun --enable-recovery: the death of any rank will end the whole cluster");
  }
  return runtime;
}

MpiRuntime::~MpiRuntime() {
  world_.reset();
  MPI_Finalize();
}

Result<std::shared_ptr<HostComm>> MpiRuntime::split(int color, int key) {
  MPI_Comm comm = MPI_COMM_NULL;
  LOWKEY_TRY(mpi_status(MPI_Comm_split(MPI_COMM_WORLD, color < 0 ? MPI_UNDEFINED : color, key, &comm),
                        "MPI_Comm_split"));
  if (comm == MPI_COMM_NULL) return std::shared_ptr<HostComm>();
  return std::shared_ptr<HostComm>(std::make_shared<MpiComm>(comm));
}

void MpiRuntime::abandon(int exit_status) {
  std::fflush(nullptr);
  _exit(exit_status);
}

}  // namespace lowkey::transport
