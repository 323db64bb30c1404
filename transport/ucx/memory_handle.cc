#include "transport/ucx/memory_handle.h"

#include "base/bytes.h"
#include "transport/ucx/ucx_status.h"

namespace lowkey::transport {

Result<std::unique_ptr<MemoryHandle>> MemoryHandle::allocate(std::shared_ptr<Context> context, size_t bytes) {
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.length = bytes;
  params.flags = UCP_MEM_MAP_ALLOCATE;
  ucp_mem_h handle = nullptr;
  const std::string what =
      fmt::format("shared memory of {} (is /dev/shm large enough?)", format_bytes(bytes));
  if (ucs_status_t status = ucp_mem_map(context->native(), &params, &handle); status != UCS_OK) {
    return ucx_error(status, what);
  }
  ucp_mem_attr_t attributes{};
  attributes.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS | UCP_MEM_ATTR_FIELD_LENGTH;
  if (ucs_status_t status = ucp_mem_query(handle, &attributes); status != UCS_OK) {
    ucp_mem_unmap(context->native(), handle);
    return ucx_error(status, what);
  }
  const std::span<std::byte> memory(static_cast<std::byte*>(attributes.address), bytes);
  return std::unique_ptr<MemoryHandle>(new MemoryHandle(std::move(context), handle, memory));
}

Result<std::unique_ptr<MemoryHandle>> MemoryHandle::add(std::shared_ptr<Context> context,
                                                        std::span<std::byte> memory) {
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
  params.address = memory.data();
  params.length = memory.size();
  ucp_mem_h handle = nullptr;
  if (ucs_status_t status = ucp_mem_map(context->native(), &params, &handle); status != UCS_OK) {
    return ucx_error(status, fmt::format("registering {} for the network", format_bytes(memory.size())));
  }
  return std::unique_ptr<MemoryHandle>(new MemoryHandle(std::move(context), handle, memory));
}

Result<std::string> MemoryHandle::packed_key() const {
  void* buffer = nullptr;
  size_t length = 0;
  if (ucs_status_t status = ucp_rkey_pack(context_->native(), handle_, &buffer, &length); status != UCS_OK) {
    return ucx_error(status, "key of a memory pool");
  }
  std::string packed(static_cast<const char*>(buffer), length);
  ucp_rkey_buffer_release(buffer);
  return packed;
}

Result<std::unique_ptr<RemoteKey>> RemoteKey::unpack(std::shared_ptr<Endpoint> endpoint,
                                                     const std::string& packed) {
  ucp_rkey_h handle = nullptr;
  if (ucs_status_t status = ucp_ep_rkey_unpack(endpoint->native(), packed.data(), &handle);
      status != UCS_OK) {
    return ucx_error(status, "key of a peer's memory pool");
  }
  return std::unique_ptr<RemoteKey>(new RemoteKey(std::move(endpoint), handle));
}

}  // namespace lowkey::transport
