#include "base/host_memory.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

namespace lowkey {
namespace {

// Folders of this process's cgroup (version 2), innermost first.
std::filesystem::path own_cgroup() {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("0::"))
      return std::filesystem::path("/sys/fs/cgroup") / line.substr(std::min<size_t>(4, line.size()));
  }
  return "/sys/fs/cgroup";
}

template <class Visit>
void for_each_cgroup(Visit&& visit) {
  for (std::filesystem::path folder = own_cgroup();; folder = folder.parent_path()) {
    visit(folder);
    if (folder == "/sys/fs/cgroup" || !folder.has_relative_path()) return;
  }
}

}  // namespace

uint64_t host_memory_limit_bytes() {
  uint64_t limit =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  for_each_cgroup([&](const std::filesystem::path& folder) {
    std::ifstream file(folder / "memory.max");
    uint64_t bytes = 0;
    if (file >> bytes) limit = std::min(limit, bytes);  // "max" fails to parse: no limit
  });
  return limit;
}

namespace {

// The number behind `key` in a file of lines "key number ..."; 0 when it is not there.
uint64_t number_in(const std::filesystem::path& path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  for (uint64_t number = 0; file >> word; file.ignore(std::numeric_limits<std::streamsize>::max(), '\n')) {
    if (word == key && file >> number) return number;
  }
  return 0;
}

}  // namespace

uint64_t host_memory_available_bytes() {
  uint64_t available = number_in("/proc/meminfo", "MemAvailable:") * 1024;
  if (available == 0) available = host_memory_limit_bytes();
  for_each_cgroup([&](const std::filesystem::path& folder) {
    std::ifstream max_file(folder / "memory.max"), current_file(folder / "memory.current");
    uint64_t max = 0, current = 0;
    if (!(max_file >> max) || !(current_file >> current)) return;
    const uint64_t reclaimable =
        number_in(folder / "memory.stat", "inactive_file") + number_in(folder / "memory.stat", "active_file");
    const uint64_t used = current - std::min(current, reclaimable);
    available = std::min(available, max - std::min(max, used));
  });
  return available;
}

int usable_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  int cores = sched_getaffinity(0, sizeof(mask), &mask) == 0 ? CPU_COUNT(&mask) : 1;
  for_each_cgroup([&](const std::filesystem::path& folder) {
    std::ifstream file(folder / "cpu.max");
    double quota = 0, period = 0;
    if (file >> quota >> period && period > 0)
      cores = std::min(cores, static_cast<int>(std::ceil(quota / period)));
  });
  return std::max(cores, 1);
}

}  // namespace lowkey
