#include "base/host_memory.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lowkey {
namespace {

struct ControlGroup {
  std::filesystem::path folder;
  bool version_1 = false;  // a tree for each controller, other file names
};

bool lists(std::string_view controllers, std::string_view controller) {
  while (!controllers.empty()) {
    const size_t comma = std::min(controllers.find(','), controllers.size());
    if (controllers.substr(0, comma) == controller) return true;
    controllers.remove_prefix(std::min(comma + 1, controllers.size()));
  }
  return false;
}

// Those of this process that `controller` may limit, each with those around it. In a container its path may
// be one that only the host sees: what is visible is the root of the tree then, and that is among them.
std::vector<ControlGroup> groups_of(const HostFiles& files, std::string_view controller) {
  std::vector<ControlGroup> groups;
  std::ifstream file(files.proc / "self/cgroup");
  for (std::string line; std::getline(file, line);) {  // number:controllers:/path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version_2 = line.substr(0, first) == "0" && controllers.empty();
    if (!version_2 && !lists(controllers, controller)) continue;
    const std::filesystem::path root = version_2 ? files.cgroups : files.cgroups / controller;
    const std::filesystem::path path = std::filesystem::path(line.substr(second + 1)).relative_path();
    std::filesystem::path folder = root;
    groups.push_back({folder, !version_2});
    for (const auto& name : path) groups.push_back({folder /= name, !version_2});
  }
  return groups;
}

// A file that holds one number; none where it is absent, or holds a word ("max": no limit).
std::optional<double> number_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  double number = 0;
  return file >> number ? std::optional(number) : std::nullopt;
}

std::optional<uint64_t> bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  uint64_t bytes = 0;
  return file >> bytes ? std::optional(bytes) : std::nullopt;
}

std::optional<uint64_t> limit_of(const ControlGroup& group) {
  return bytes_of(group.folder / (group.version_1 ? "memory.limit_in_bytes" : "memory.max"));
}

// The number behind `key` in a file of lines "key number ..."; 0 when it is not there.
uint64_t number_in(const std::filesystem::path& path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  for (uint64_t number = 0; file >> word; file.ignore(std::numeric_limits<std::streamsize>::max(), '\n')) {
    if (word == key && file >> number) return number;
  }
  return 0;
}

// Without clean file pages.
std::optional<uint64_t> used_of(const ControlGroup& group) {
  const auto current =
      bytes_of(group.folder / (group.version_1 ? "memory.usage_in_bytes" : "memory.current"));
  if (!current) return std::nullopt;
  const std::string prefix = group.version_1 ? "total_" : "";  // with those of the groups inside
  const uint64_t reclaimable = number_in(group.folder / "memory.stat", prefix + "inactive_file") +
                               number_in(group.folder / "memory.stat", prefix + "active_file");
  return *current - std::min(*current, reclaimable);
}

// Cores' worth of time, as a quota of each period.
std::optional<double> cores_of(const ControlGroup& group) {
  if (group.version_1) {
    const auto quota = number_of(group.folder / "cpu.cfs_quota_us");
    const auto period = number_of(group.folder / "cpu.cfs_period_us");
    return quota && period && *quota > 0 && *period > 0 ? std::optional(*quota / *period) : std::nullopt;
  }
  std::ifstream file(group.folder / "cpu.max");
  double quota = 0, period = 0;
  return file >> quota >> period && period > 0 ? std::optional(quota / period) : std::nullopt;
}

}  // namespace

uint64_t host_memory_limit_bytes(const HostFiles& files) {
  uint64_t limit =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  for (const ControlGroup& group : groups_of(files, "memory")) {
    if (const auto bytes = limit_of(group)) limit = std::min(limit, *bytes);
  }
  return limit;
}

uint64_t host_memory_available_bytes(const HostFiles& files) {
  uint64_t available = number_in(files.proc / "meminfo", "MemAvailable:") * 1024;
  if (available == 0) available = host_memory_limit_bytes(files);
  for (const ControlGroup& group : groups_of(files, "memory")) {
    const auto limit = limit_of(group), used = used_of(group);
    if (limit && used) available = std::min(available, *limit - std::min(*limit, *used));
  }
  return available;
}

int usable_cores(const HostFiles& files) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  int cores = sched_getaffinity(0, sizeof(mask), &mask) == 0 ? CPU_COUNT(&mask) : 1;
  for (const ControlGroup& group : groups_of(files, "cpu")) {
    if (const auto share = cores_of(group)) cores = std::min(cores, static_cast<int>(std::ceil(*share)));
  }
  return std::max(cores, 1);
}

}  // namespace lowkey
