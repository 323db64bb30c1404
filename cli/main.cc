#include <CLI/CLI.hpp>
#include <cstring>

#include "cli/bench.h"
#include "cli/calibrate.h"
#include "cli/evaluate.h"
#include "cli/inspect.h"
#include "cli/serve.h"

namespace {

using lowkey::transport::Role;

struct RoleCommand {
  const char* name;
  std::optional<Role> role;
  const char* help;
};

// Handled before CLI11 sees the arguments: a cluster process has settings from variables and files as well,
// and all ranks must agree on an error before any of them ends.
constexpr RoleCommand kRoleCommands[] = {
    {"serve", std::nullopt,
     "one process of a cluster, its role from its rank: mpirun -n 4 lowkey serve --model DIR"},
    {"coordinator", Role::kCoordinator,
     "the same, as the coordinator of an MPMD launch; alone with --cluster-port: adopts workers and stores that run"},
    {"worker", Role::kWorker,
     "the same, as a worker; with --join HOST:PORT a further replica of a cluster that runs: mpirun -n 2 lowkey "
     "worker"},
    {"store", Role::kStore,
     "the same, as a store; with --join HOST:PORT a further store of a cluster that runs: lowkey store --join HOST:PORT"},
};

}  // namespace

int main(int argc, char** argv) {
  for (const RoleCommand& command : kRoleCommands) {
    if (argc > 1 && std::strcmp(argv[1], command.name) == 0) {
      return lowkey::cli::run_serve(argc - 1, argv + 1, command.role);
    }
  }
  CLI::App app("lowkey: a distributed LLM serving engine whose KV cache is always compressed", "lowkey");
  for (const RoleCommand& command : kRoleCommands) app.add_subcommand(command.name, command.help);
  int exit_code = 0;
  lowkey::cli::add_inspect_command(app, exit_code);
  lowkey::cli::add_calibrate_command(app, exit_code);
  lowkey::cli::add_evaluate_command(app, exit_code);
  lowkey::cli::add_bench_command(app, exit_code);
  app.require_subcommand(1);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return exit_code;
}
