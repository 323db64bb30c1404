// Drives the load of `lowkey bench` and gathers what came back. One thread.
#pragma once

#include "base/result.h"
#include "cli/bench_options.h"
#include "cli/bench_stats.h"

namespace lowkey::cli {

// Reads the trace, if there is one, asks the server for its model when none is named (kept in `options`),
// sends one request to learn how many tokens a word has (it also reaches whatever is wrong before the load
// does), then runs. SIGINT ends early, with what there is.
Result<BenchStats> run_bench(BenchOptions& options, bool progress);

}  // namespace lowkey::cli
