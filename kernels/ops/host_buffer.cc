#include "kernels/ops/host_buffer.h"

#include <sys/mman.h>

#include <cstring>

#include "base/check.h"

namespace lowkey::kernels {
namespace {

// From this size on the memory is aligned for, and asked to be, 2 MB pages: weights are read once per token,
// and with 4 KB pages address translation costs a good part of the bandwidth.
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

HostBuffer::HostBuffer(size_t bytes) : size_(bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const size_t rounded = (bytes + 63) / 64 * 64;
  void* memory = nullptr;
  const int error = ::posix_memalign(&memory, alignment, rounded == 0 ? 64 : rounded);
  LOWKEY_CHECK(error == 0, "cannot allocate {} bytes", bytes);
  if (alignment == kHugePage) ::madvise(memory, rounded, MADV_HUGEPAGE);  // a hint; refused is fine
  std::memset(memory, 0, rounded);
  data_.reset(static_cast<std::byte*>(memory));
}

}  // namespace lowkey::kernels
