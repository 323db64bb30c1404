// How much memory this process may use: the host's, or its cgroup's limit when that is lower.
#pragma once

#include <cstdint>

namespace lowkey {

uint64_t host_memory_limit_bytes();
// What is left of it now, clean file pages included: they give way.
uint64_t host_memory_available_bytes();
int usable_cores();  // affinity mask and cgroup quota respected, at least 1

}  // namespace lowkey
