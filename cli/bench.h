// `lowkey bench`: load over HTTP against an OpenAI-style server; latency percentiles and throughput.
#pragma once

namespace CLI {
class App;
}

namespace lowkey::cli {

// Registers the subcommand. When it was chosen, its callback runs the load and sets `exit_code`: 0 when at
// least one request was answered, 2 for a bad option, 3 for a bad trace, 4 when none was.
void add_bench_command(CLI::App& app, int& exit_code);

}  // namespace lowkey::cli
