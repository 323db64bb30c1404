// On which NUMA nodes a process's memory and threads lie. All of it does nothing on one node, or where the
// process was started with a policy or an affinity mask of its own (numactl, taskset, mpirun --bind-to).
#pragma once

#include <span>
#include <string>
#include <vector>

namespace lowkey {

// Those that this process may use memory of; empty where the system does not tell.
std::vector<int> usable_numa_nodes();

// Memory that this thread, and threads that it starts, touch for the first time while this lives is spread
// over those nodes in turn: what processes of all nodes read should not lie far away for most of them, nor
// fill up one node's memory.
class NumaInterleave {
 public:
  NumaInterleave();
  ~NumaInterleave();
  NumaInterleave(const NumaInterleave&) = delete;
  NumaInterleave& operator=(const NumaInterleave&) = delete;
  bool active() const { return active_; }

 private:
  bool active_ = false;
};

// The nodes of the `index`-th of `workers` that share a host: an equal part of them, or one that several
// workers share; all of them where neither comes out even, as one slow worker would make all others wait.
// REQUIRES: 0 <= index < workers.
std::vector<int> nodes_of_worker(std::span<const int> nodes, int index, int workers);

// "0-3,8" as the kernel writes it; what makes no sense is passed over.
std::vector<int> parse_cpu_list(const std::string& list);

// Before this process makes what it computes with: from now on this thread, and those it starts, run on the
// worker's nodes, and what they touch lies there (one node: as long as it has room; several: in turn).
// Returns the nodes it was bound to; empty: it was left alone.
std::vector<int> place_worker(int index, int workers);

}  // namespace lowkey
