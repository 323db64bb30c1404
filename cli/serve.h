// `lowkey serve`, `coordinator`, `worker`, `store`: one process of a cluster.
#pragma once

#include <optional>

#include "transport/peer.h"

namespace lowkey::cli {

// Runs until the cluster ends; the process's exit code. `named`: the role it was started under, none for
// `serve`.
int run_serve(int argc, char** argv, std::optional<transport::Role> named);

}  // namespace lowkey::cli
