#include "cli/serve.h"

#include "base/exit_now.h"
#include "base/log.h"
#include "cli/processes.h"
#include "cli/serve_options.h"
#include "transport/mpi/mpi_runtime.h"

namespace lowkey::cli {
namespace {

using transport::Role;

Ending run_role(const Job& job) {
  init_logging(job.self().role == Role::kWorker
                   ? fmt::format("worker {}.{}", job.self().replica, job.self().replica_rank)
                   : fmt::format("{}", transport::to_string(job.self().role)),
               job.config.log_level);
  switch (job.self().role) {
    case Role::kCoordinator:
      return run_coordinator(job);
    case Role::kWorker:
      return run_worker(job);
    case Role::kStore:
      return run_store(job);
  }
  LOWKEY_CHECK(false, "role {}", static_cast<int>(job.self().role));
}

}  // namespace

int run_serve(int argc, char** argv, std::optional<Role> named) {
  auto mpi = transport::MpiRuntime::start();
  if (!mpi.ok()) {
    std::fprintf(stderr, "lowkey: %s\n", mpi.error().message.c_str());
    return 4;
  }
  const bool speaks = (*mpi)->rank() == 0;
  const ParsedOptions parsed = parse_serve_options(argc, argv, speaks || named.has_value());
  if (parsed.exit_code) return *parsed.exit_code;
  init_logging(fmt::format("rank {}", (*mpi)->rank()), parsed.config.log_level);
  auto job = Job::form(**mpi, parsed.config, named);
  if (!job.ok()) {
    if (!job.error().message.empty()) spdlog::error("{}", job.error().message);
    if ((*mpi)->is_abandoned()) exit_now(exit_code(job.error()));
    return exit_code(job.error());
  }
  const Ending ending = run_role(*job);
  if (!ending.status.ok() && !ending.status.error().message.empty()) {
    spdlog::error("{}", ending.status.error().message);
  }
  if (!ending.orderly || (*mpi)->is_abandoned()) exit_now(exit_code(ending.status));
  return exit_code(ending.status);
}

}  // namespace lowkey::cli
