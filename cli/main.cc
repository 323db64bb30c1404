#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/version.h"
#include "cli/bench.h"
#include "cli/calibrate.h"
#include "cli/evaluate.h"
#include "cli/inspect.h"
#include "cli/serve.h"

namespace {

using lowkey::kVersion;
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
     "the same, as the coordinator of an MPMD launch; alone with --cluster-port: adopts workers and stores "
     "that run"},
    {"worker", Role::kWorker,
     "the same, as a worker; with --join HOST:PORT a further replica of a cluster that runs: mpirun -n 2 "
     "lowkey worker"},
    {"store", Role::kStore,
     "the same, as a store; with --join HOST:PORT a further store of a cluster that runs: lowkey store "
     "--join HOST:PORT"},
};

bool is_subcommand(const CLI::App& app, const std::string& name) {
  const auto all = app.get_subcommands([](const CLI::App*) { return true; });
  return std::any_of(all.begin(), all.end(), [&](const CLI::App* each) { return each->get_name() == name; });
}

}  // namespace

int main(int argc, char** argv) {
  for (const RoleCommand& command : kRoleCommands) {
    if (argc > 1 && std::strcmp(argv[1], command.name) == 0) {
      return lowkey::cli::run_serve(argc - 1, argv + 1, command.role);
    }
  }
  CLI::App app("lowkey: a distributed LLM serving engine whose KV cache lives in compressed pages", "lowkey");
  app.set_version_flag("--version", kVersion);
  for (const RoleCommand& command : kRoleCommands) app.add_subcommand(command.name, command.help);
  int exit_code = 0;
  lowkey::cli::add_inspect_command(app, exit_code);
  lowkey::cli::add_calibrate_command(app, exit_code);
  lowkey::cli::add_evaluate_command(app, exit_code);
  lowkey::cli::add_bench_command(app, exit_code);
  app.require_subcommand(1);
  if (argc > 1 && argv[1][0] != '-' && !is_subcommand(app, argv[1])) {
    std::fprintf(stderr, "lowkey: expected one of the subcommands of lowkey --help, found '%s'\n", argv[1]);
    return 2;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return exit_code;
}
