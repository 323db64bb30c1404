// The real transport: control and data plane over UCX, driven by one io_context.
#pragma once

#include <memory>

#include "transport/control_plane.h"
#include "transport/data_plane.h"

namespace lowkey::transport {

struct UcxTransport {
  std::unique_ptr<ControlPlane> control;
  std::unique_ptr<DataPlane> data;
  bool reaches_gpu_memory = false;  // UCX was built for GPUs and found some (the Debian package is not)
};

// Listens at options.listen_host and listen_port (0: of the system's choice). Uses the network devices of
// that address only, unless UCX_NET_DEVICES or UCX_TLS say otherwise. The planes go before the io_context, on
// its thread or after it has stopped.
//
// What the handshake protects is this project's protocol. UCX's own wire protocol below it is neither
// encrypted nor authenticated: whoever can speak it to the data ports can write into registered memory. On
// other than loopback addresses the network must be private to the cluster.
Result<UcxTransport> make_ucx_transport(boost::asio::io_context& io, ControlOptions options,
                                        ControlHandlers handlers);

}  // namespace lowkey::transport
