#include "base/numa.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/check.h"
#include "base/log.h"

namespace lowkey {
namespace {

constexpr unsigned long kMaxNodes = 1024;
constexpr unsigned long kBits = 8 * sizeof(unsigned long);
using NodeMask = std::array<unsigned long, kMaxNodes / kBits>;

// By system call: libnuma would be a dependency for three lines.
long get_mempolicy(int* mode, NodeMask* nodes, unsigned flags) {
  return ::syscall(SYS_get_mempolicy, mode, nodes ? nodes->data() : nullptr, nodes ? kMaxNodes : 0, nullptr,
                   flags);
}

long set_mempolicy(int mode, const NodeMask* nodes) {
  return ::syscall(SYS_set_mempolicy, mode, nodes ? nodes->data() : nullptr, nodes ? kMaxNodes : 0);
}

NodeMask mask_of(const std::vector<int>& nodes) {
  NodeMask mask{};
  for (const int node : nodes) mask[node / kBits] |= 1ul << (node % kBits);
  return mask;
}

bool has_own_policy() {
  int mode = 0;
  return get_mempolicy(&mode, nullptr, 0) != 0 || mode != MPOL_DEFAULT;
}

std::vector<int> cpus_of_node(int node) {
  std::string list;
  std::getline(std::ifstream("/sys/devices/system/node/node" + std::to_string(node) + "/cpulist"), list);
  return parse_cpu_list(list);
}

void add_cpus(const std::vector<int>& nodes, cpu_set_t* set) {
  for (const int node : nodes) {
    for (const int cpu : cpus_of_node(node)) CPU_SET(cpu, set);  // beyond its end: nothing happens
  }
}

// This thread may run on every core of these nodes.
bool runs_on_all(const std::vector<int>& nodes) {
  cpu_set_t mine, all, both;
  CPU_ZERO(&mine);
  CPU_ZERO(&all);
  add_cpus(nodes, &all);
  if (sched_getaffinity(0, sizeof(mine), &mine) != 0) return false;
  CPU_AND(&both, &mine, &all);
  return CPU_EQUAL(&both, &all);
}

}  // namespace

std::vector<int> usable_numa_nodes() {
  NodeMask mask{};
  std::vector<int> nodes;
  if (get_mempolicy(nullptr, &mask, MPOL_F_MEMS_ALLOWED) != 0) return nodes;
  for (unsigned long node = 0; node < kMaxNodes; ++node) {
    if ((mask[node / kBits] >> (node % kBits) & 1) != 0) nodes.push_back(static_cast<int>(node));
  }
  return nodes;
}

NumaInterleave::NumaInterleave() {
  const std::vector<int> nodes = usable_numa_nodes();
  if (nodes.size() < 2 || has_own_policy()) return;
  const NodeMask mask = mask_of(nodes);
  active_ = set_mempolicy(MPOL_INTERLEAVE, &mask) == 0;
  if (!active_) spdlog::warn("memory not spread over {} NUMA nodes: {}", nodes.size(), std::strerror(errno));
}

NumaInterleave::~NumaInterleave() {
  if (active_) set_mempolicy(MPOL_DEFAULT, nullptr);
}

std::vector<int> nodes_of_worker(std::span<const int> nodes, int index, int workers) {
  LOWKEY_CHECK(index >= 0 && index < workers, "worker {} of {}", index, workers);
  const int count = static_cast<int>(nodes.size());
  if (count % workers != 0 && workers % std::max(1, count) != 0) return {nodes.begin(), nodes.end()};
  const int first = index * count / workers, size = std::max(1, count / workers);
  const auto mine = nodes.subspan(first, std::min(size, count - first));
  return {mine.begin(), mine.end()};
}

std::vector<int> parse_cpu_list(const std::string& list) {
  std::vector<int> cpus;
  std::istringstream in(list);
  for (std::string part; std::getline(in, part, ',');) {
    int first = 0, last = 0;
    const int found = std::sscanf(part.c_str(), "%d-%d", &first, &last);
    if (found == 1) last = first;
    if (found < 1 || first < 0 || last >= CPU_SETSIZE) continue;
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

std::vector<int> place_worker(int index, int workers) {
  std::vector<int> nodes = usable_numa_nodes();
  std::erase_if(nodes, [](int node) { return cpus_of_node(node).empty(); });  // memory alone
  if (nodes.size() < 2 || has_own_policy() || !runs_on_all(nodes)) return {};
  const std::vector<int> mine = nodes_of_worker(nodes, index, workers);
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  add_cpus(mine, &cpus);
  const NodeMask mask = mask_of(mine);
  const bool bound = mine.size() == nodes.size() || sched_setaffinity(0, sizeof(cpus), &cpus) == 0;
  if (bound && set_mempolicy(mine.size() == 1 ? MPOL_PREFERRED : MPOL_INTERLEAVE, &mask) == 0) return mine;
  spdlog::warn("not placed on {} of {} NUMA nodes: {}", mine.size(), nodes.size(), std::strerror(errno));
  return {};
}

}  // namespace lowkey
