// Memory, CPU time and age of a process, from /proc.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace lowkey::monitoring {

class Metrics;

struct ProcessStats {
  uint64_t anonymous_bytes = 0;  // resident heap, stacks, private copies
  uint64_t shared_bytes = 0;     // resident shared memory, huge pages included
  uint64_t file_bytes = 0;       // resident pages of mapped files: the kernel may drop them
  double cpu_seconds = 0;        // user + system
  double age_seconds = 0;        // since the process was started
};

Result<ProcessStats> read_process_stats(int pid = 0);  // 0: this process

// Feeds lowkey_process_*. One thread calls update(), before each serialize().
class ProcessMetrics {
 public:
  explicit ProcessMetrics(Metrics& metrics) : metrics_(metrics) {}
  void update();
  void set_ready();  // now: sets lowkey_start_seconds

 private:
  Metrics& metrics_;
  double cpu_seconds_ = 0;
};

}  // namespace lowkey::monitoring
