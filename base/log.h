// One line per event on stderr, with level, role and rank; spdlog underneath.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace lowkey {

// Call once per process before other threads start. `who` is the prefix, e.g. "worker 1".
void init_logging(const std::string& who, const std::string& level);

}  // namespace lowkey
