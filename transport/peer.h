// Who is on the other side of a control connection, as told and proven in the handshake.
#pragma once

#include <cstdint>
#include <string>

#include "base/hash128.h"

namespace lowkey::transport {

enum class Role : uint8_t { kCoordinator = 0, kWorker = 1, kStore = 2 };
const char* to_string(Role role);

struct PeerInfo {
  Role role = Role::kWorker;
  int world_rank = 0;    // in the MPI job
  int replica = 0;       // workers: which tensor-parallel group
  int replica_rank = 0;  // workers: rank inside it; 0 is the leader
  int replica_size = 1;
  std::string host;      // boot id and IPC namespace: equal means shared memory can work
  bool rdma = false;     // the host has an RDMA port that is up
  Hash128 model_fingerprint;   // zero: not bound to one (coordinator before it has read the model, store)
  Hash128 layout_fingerprint;  // zero: not bound to one
};

}  // namespace lowkey::transport
