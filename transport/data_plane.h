// One-sided transfers of slabs. Same host: a UCX context over shared memory on pools allocated by UCX (8-9
// GB/s, the peer's CPU not involved); other hosts: RMA through the control context's transports. Success of a
// put or get proves nothing about the peer's life: deaths are the control plane's business, and the owner of
// a pool decides by lease and checksum what may be trusted. Thread rule: everything, callbacks included, runs
// on the io_context's single thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/deadline.h"
#include "base/result.h"
#include "transport/control_plane.h"

namespace lowkey::transport {

// Memory that peers may read and write; pre-touched. Freed with the object, or, as peers may still write to
// it where it is reached over a network, when the connections of that moment are closed.
class MemoryPool {
 public:
  virtual ~MemoryPool() = default;
  virtual std::span<std::byte> bytes() = 0;
  // Opaque description for peers (rkeys of both contexts and base address), carried in a control message.
  virtual std::string remote_handle() const = 0;
};

// A peer's pool, opened from its remote_handle().
class RemotePool {
 public:
  virtual ~RemotePool() = default;
  virtual uint64_t size() const = 0;
  virtual const char* transport() const = 0;  // "shm", "tcp", "loopback": what was really chosen, for metrics
};

struct Transfer {
  std::span<std::byte> local;  // stays valid until done; any memory
  uint64_t remote_offset = 0;  // into the remote pool
};

class DataPlane {
 public:
  virtual ~DataPlane() = default;
  // This process's data address; peers need it in open().
  virtual std::string address() const = 0;
  virtual Result<std::shared_ptr<MemoryPool>> allocate(size_t bytes) = 0;
  virtual Result<std::shared_ptr<RemotePool>> open(const ConnectionPtr& peer, const std::string& data_address,
                                                   const std::string& remote_handle) = 0;
  // All transfers of a batch under one flush; `done` exactly once: success, or the first error, or
  // kDeadlineExceeded. After an error the local memory stays quarantined by the plane until UCX lets go of
  // it: callers hand over `keep_alive`, which is released only then.
  virtual void put(const std::shared_ptr<RemotePool>& pool, std::vector<Transfer> batch, Deadline deadline,
                   std::shared_ptr<void> keep_alive, std::function<void(Status)> done) = 0;
  virtual void get(const std::shared_ptr<RemotePool>& pool, std::vector<Transfer> batch, Deadline deadline,
                   std::shared_ptr<void> keep_alive, std::function<void(Status)> done) = 0;
};

}  // namespace lowkey::transport
