#include "kvstore/service/pool_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>

#include "base/bytes.h"

namespace lowkey::kvstore {

Status check_memory(uint64_t wanted, uint64_t available) {
  if (wanted <= available) return {};
  return Error{
      Code::kUsage,
      fmt::format("--host-bytes: this store's share, {}, does not fit the memory that the host (or the "
                  "cgroup) has left, {}",
                  format_bytes(wanted), format_bytes(available)),
      "host-bytes"};
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
