// Which processes can share memory with this one.
#pragma once

#include <string>

namespace lowkey::transport {

// Boot id, IPC namespace and the file system of /dev/shm: equal strings mean one kernel and one shared
// memory, whatever the network namespaces say. For PeerInfo::host. Empty when it cannot be told: then nothing
// is shared.
std::string host_identity();

}  // namespace lowkey::transport
