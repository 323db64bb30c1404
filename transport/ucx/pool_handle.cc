#include "transport/ucx/pool_handle.h"

#include <cstring>
#include <span>

#include "base/hash128.h"

namespace lowkey::transport {
namespace {

struct Fixed {
  uint64_t magic = 0x326c6f6f706b6c;  // "lkpool2"
  uint64_t base = 0;
  uint64_t size = 0;
  uint64_t scratch = 0;
  uint32_t same_host_key_bytes = 0;
  uint32_t control_key_bytes = 0;
};

uint64_t checksum(const char* data, size_t size) {
  return slab_checksum(std::as_bytes(std::span(data, size)));
}

}  // namespace

std::string pack(const PoolHandle& handle) {
  Fixed fixed;
  fixed.base = handle.base;
  fixed.size = handle.size;
  fixed.scratch = handle.scratch;
  fixed.same_host_key_bytes = static_cast<uint32_t>(handle.same_host_key.size());
  fixed.control_key_bytes = static_cast<uint32_t>(handle.control_key.size());
  std::string bytes(reinterpret_cast<const char*>(&fixed), sizeof fixed);
  bytes += handle.same_host_key;
  bytes += handle.control_key;
  const uint64_t sum = checksum(bytes.data(), bytes.size());
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  return bytes;
}

Result<PoolHandle> unpack_pool_handle(const std::string& bytes) {
  const Error malformed{Code::kInvalidArgument,
                        fmt::format("handle of a memory pool is malformed ({} bytes)", bytes.size())};
  Fixed fixed;
  uint64_t sum = 0;
  if (bytes.size() < sizeof fixed + sizeof sum) return malformed;
  const size_t signed_bytes = bytes.size() - sizeof sum;
  std::memcpy(&fixed, bytes.data(), sizeof fixed);
  std::memcpy(&sum, bytes.data() + signed_bytes, sizeof sum);
  const uint64_t keys = uint64_t{fixed.same_host_key_bytes} + fixed.control_key_bytes;
  if (fixed.magic != Fixed().magic || signed_bytes != sizeof fixed + keys) return malformed;
  if (checksum(bytes.data(), signed_bytes) != sum) return malformed;
  const uint64_t end = fixed.base + fixed.size;
  if (fixed.size == 0 || end < fixed.base || end + fixed.scratch < end) return malformed;
  PoolHandle handle;
  handle.base = fixed.base;
  handle.size = fixed.size;
  handle.scratch = fixed.scratch;
  handle.same_host_key = bytes.substr(sizeof fixed, fixed.same_host_key_bytes);
  handle.control_key = bytes.substr(sizeof fixed + fixed.same_host_key_bytes, fixed.control_key_bytes);
  return handle;
}

}  // namespace lowkey::transport
