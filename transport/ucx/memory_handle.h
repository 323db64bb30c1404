// Owner of memory known to a UCP context: allocated by UCX, or memory of another handle registered here as
// well. And of a key to a peer's memory.
#pragma once

#include <ucp/api/ucp.h>

#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "transport/ucx/context.h"
#include "transport/ucx/endpoint.h"

namespace lowkey::transport {

class MemoryHandle {
 public:
  // Shared memory that peers reach without our CPU: only UCX's own allocation has that property.
  static Result<std::unique_ptr<MemoryHandle>> allocate(std::shared_ptr<Context> context, size_t bytes);
  static Result<std::unique_ptr<MemoryHandle>> add(std::shared_ptr<Context> context,
                                                   std::span<std::byte> memory);
  ~MemoryHandle() { ucp_mem_unmap(context_->native(), handle_); }
  MemoryHandle(const MemoryHandle&) = delete;
  MemoryHandle& operator=(const MemoryHandle&) = delete;

  std::span<std::byte> bytes() const { return bytes_; }
  Result<std::string> packed_key() const;  // for RemoteKey::unpack in peers

 private:
  MemoryHandle(std::shared_ptr<Context> context, ucp_mem_h handle, std::span<std::byte> bytes)
      : context_(std::move(context)), handle_(handle), bytes_(bytes) {}

  const std::shared_ptr<Context> context_;
  const ucp_mem_h handle_;
  const std::span<std::byte> bytes_;
};

class RemoteKey {
 public:
  static Result<std::unique_ptr<RemoteKey>> unpack(std::shared_ptr<Endpoint> endpoint,
                                                   const std::string& packed);
  ~RemoteKey() { ucp_rkey_destroy(handle_); }
  RemoteKey(const RemoteKey&) = delete;
  RemoteKey& operator=(const RemoteKey&) = delete;

  ucp_rkey_h native() const { return handle_; }
  const std::shared_ptr<Endpoint>& endpoint() const { return endpoint_; }

 private:
  RemoteKey(std::shared_ptr<Endpoint> endpoint, ucp_rkey_h handle)
      : endpoint_(std::move(endpoint)), handle_(handle) {}
  const std::shared_ptr<Endpoint> endpoint_;
  const ucp_rkey_h handle_;
};

}  // namespace lowkey::transport
