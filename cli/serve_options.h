// ServeConfig from flags, LOWKEY_... variables and a config file; and back to the lines printed at start.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/serve_config.h"
#include "kernels/page/page_layout.h"

namespace CLI {
class App;
}

namespace lowkey::cli {

struct ParsedOptions {
  ServeConfig config;
  std::optional<int> exit_code;  // set when the process should end now: help shown (0) or a usage error (2)
};

// `command` is argv[0] of the subcommand: "serve", "coordinator", "worker" or "store". Precedence: default <
// file < variable < flag. Unknown flags, file keys and LOWKEY_ variables, and values out of range, are usage
// errors; messages are printed only when `print` (one rank of a job speaks for all).
ParsedOptions parse_serve_options(int argc, char** argv, bool print);

// Declares the setting `name` on a command of its own, as serve has it. REQUIRES: there is one; `config`
// outlives the command.
void add_serve_setting(CLI::App& command, std::string_view name, ServeConfig& config);

// --dtype: of weights and exact K and V.
kernels::DType dtype_of(const ServeConfig& config);

// "  --port 8000   HTTP port; ..." one line per setting; secrets as "(set)".
std::string describe(const ServeConfig& config);

}  // namespace lowkey::cli
