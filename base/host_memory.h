// How much memory and how many cores this process may use: the host's, or its control group's limit (version
// 1 or 2) when that is lower.
#pragma once

#include <cstdint>
#include <filesystem>

namespace lowkey {

// Where the system tells; other folders are for tests.
struct HostFiles {
  std::filesystem::path proc = "/proc";
  std::filesystem::path cgroups = "/sys/fs/cgroup";
};

uint64_t host_memory_limit_bytes(const HostFiles& files = {});
// What is left of it now, clean file pages included: they give way.
uint64_t host_memory_available_bytes(const HostFiles& files = {});
int usable_cores(const HostFiles& files = {});  // affinity mask and quota respected, at least 1

}  // namespace lowkey
