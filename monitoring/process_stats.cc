#include "monitoring/process_stats.h"

#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "monitoring/metrics.h"

namespace lowkey::monitoring {
namespace {

Result<std::string> read_proc(const std::string& folder, const char* name) {
  std::ifstream file(folder + name);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || text.str().empty()) return Error{Code::kNotFound, "cannot read " + folder + name, ""};
  return text.str();
}

// The value of "Name:   123 kB" in bytes; 0 where the kernel has no such line.
uint64_t status_bytes(const std::string& status, const std::string& name) {
  auto at = status.find("\n" + name + ":");
  if (at == std::string::npos) return 0;
  return std::strtoull(status.c_str() + at + name.size() + 2, nullptr, 10) * 1024;
}

}  // namespace

Result<ProcessStats> read_process_stats(int pid) {
  std::string folder = "/proc/" + (pid ? std::to_string(pid) : std::string("self")) + "/";
  LOWKEY_ASSIGN(status, read_proc(folder, "status"));
  LOWKEY_ASSIGN(stat, read_proc(folder, "stat"));
  ProcessStats stats;
  stats.anonymous_bytes = status_bytes(status, "RssAnon");
  stats.shared_bytes = status_bytes(status, "RssShmem") + status_bytes(status, "HugetlbPages");
  stats.file_bytes = status_bytes(status, "RssFile");

  // The name (field 2) may hold spaces and parentheses; the fields after it are numbers. proc(5).
  auto name_end = stat.rfind(')');
  if (name_end == std::string::npos) return Error{Code::kInternal, folder + "stat: no name field", ""};
  std::istringstream fields(stat.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 14; ++field) fields >> skipped;
  uint64_t user = 0, system = 0, start = 0;
  fields >> user >> system;
  for (int field = 16; field < 22; ++field) fields >> skipped;
  fields >> start;
  if (!fields) return Error{Code::kInternal, folder + "stat: too few fields", ""};
  const auto tick = static_cast<double>(sysconf(_SC_CLK_TCK));
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  stats.cpu_seconds = static_cast<double>(user + system) / tick;
  stats.age_seconds = static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) -
                      static_cast<double>(start) / tick;
  return stats;
}

void ProcessMetrics::update() {
  auto stats = read_process_stats();
  if (!stats.ok()) return;  // /proc is not mounted: the series stay away
  metrics_.set(Metric::kResidentBytes, static_cast<double>(stats->anonymous_bytes), {{"kind", "anonymous"}});
  metrics_.set(Metric::kResidentBytes, static_cast<double>(stats->shared_bytes), {{"kind", "shared"}});
  metrics_.set(Metric::kResidentBytes, static_cast<double>(stats->file_bytes), {{"kind", "file"}});
  if (stats->cpu_seconds > cpu_seconds_) {
    metrics_.add(Metric::kCpuSeconds, stats->cpu_seconds - cpu_seconds_);
    cpu_seconds_ = stats->cpu_seconds;
  }
}

void ProcessMetrics::set_ready() {
  auto stats = read_process_stats();
  if (stats.ok()) metrics_.set(Metric::kStartSeconds, stats->age_seconds);
}

}  // namespace lowkey::monitoring
