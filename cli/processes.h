// The three kinds of process. Each runs from "all ranks agreed on the job" to the end of the cluster, and
// returns how it ended; `orderly` says whether every peer was still there, so that MPI_Finalize can complete.
#pragma once

#include "base/result.h"
#include "cli/job.h"

namespace lowkey::cli {

struct Ending {
  Status status;
  bool orderly = true;
};

Ending run_coordinator(const Job& job);
Ending run_worker(const Job& job);
Ending run_store(const Job& job);

}  // namespace lowkey::cli
