#include "kvstore/service/pool_memory.h"

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "base/bytes.h"
#include "base/log.h"

namespace lowkey::kvstore {

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

}  // namespace

Status check_memory(uint64_t wanted, uint64_t available) {
  if (wanted <= available) return {};
  return Error{
      Code::kUsage,
      fmt::format("--host-bytes: this store's share, {}, does not fit the memory that the host (or the "
                  "cgroup) has left, {}",
                  format_bytes(wanted), format_bytes(available)),
      "host-bytes"};
}

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
  int mode = 0;
  if (nodes.size() < 2 || get_mempolicy(&mode, nullptr, 0) != 0 || mode != MPOL_DEFAULT) return;
  NodeMask mask{};
  for (const int node : nodes) mask[node / kBits] |= 1ul << (node % kBits);
  active_ = set_mempolicy(MPOL_INTERLEAVE, &mask) == 0;
  if (!active_) spdlog::warn("pool not spread over {} NUMA nodes: {}", nodes.size(), std::strerror(errno));
}

NumaInterleave::~NumaInterleave() {
  if (active_) set_mempolicy(MPOL_DEFAULT, nullptr);
}

PoolResidency::PoolResidency(std::span<const std::byte> pool)
    : pool_(pool), windows_((pool.size() + kWindowBytes - 1) / kWindowBytes) {}

void PoolResidency::measure_all() {
  for (size_t i = 0; i < windows_.size(); ++i) measure();
}

uint64_t PoolResidency::measure() {
  if (windows_.empty()) return 0;
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto window =
      pool_.subspan(next_ * kWindowBytes, std::min(kWindowBytes, pool_.size() - next_ * kWindowBytes));
  // The pool need not begin or end at a page's border.
  const uintptr_t begin = reinterpret_cast<uintptr_t>(window.data()) / page * page;
  const size_t bytes = reinterpret_cast<uintptr_t>(window.data()) + window.size() - begin;
  std::vector<unsigned char> resident((bytes + page - 1) / page);
  if (::mincore(reinterpret_cast<void*>(begin), bytes, resident.data()) == 0) {
    const auto pages =
        std::count_if(resident.begin(), resident.end(), [](unsigned char r) { return (r & 1) != 0; });
    windows_[next_] = std::min<uint64_t>(static_cast<uint64_t>(pages) * page, window.size());
  }
  next_ = (next_ + 1) % windows_.size();
  return std::accumulate(windows_.begin(), windows_.end(), uint64_t{0});
}

}  // namespace lowkey::kvstore
