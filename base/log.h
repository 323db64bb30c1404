// One line per event on stderr, with level, role and rank; spdlog underneath.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace lowkey {

// Call before other threads start; again when the process has learnt its role. `who` is the prefix, e.g. "worker 1".
void init_logging(const std::string& who, const std::string& level);

}  // namespace lowkey
