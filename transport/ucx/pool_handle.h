// What a peer needs to reach a memory pool: RemotePool's opaque handle.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace lowkey::transport {

struct PoolHandle {
  uint64_t base = 0;  // address in the owner's process
  uint64_t size = 0;
  uint64_t scratch = 0;  // bytes behind the pool that anybody may write (core/path_probe.h)
  std::string same_host_key;  // packed keys of the two contexts
  std::string control_key;
};

std::string pack(const PoolHandle& handle);
// Refuses anything but the exact output of pack(): UCX trusts keys blindly.
Result<PoolHandle> unpack_pool_handle(const std::string& bytes);

}  // namespace lowkey::transport
