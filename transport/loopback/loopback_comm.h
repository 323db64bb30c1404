// HostComm between threads of one process.
#pragma once

#include <memory>
#include <vector>

#include "transport/host_comm.h"

namespace lowkey::transport {

// Element i is rank i's; each is used by one thread.
std::vector<std::unique_ptr<HostComm>> make_loopback_comms(int size);

}  // namespace lowkey::transport
