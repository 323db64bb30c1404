#include "transport/ucx/ucx_transport.h"

#include <cstdlib>

#include "transport/attestation.h"
#include "transport/core/session_context.h"
#include "transport/core/session_plane.h"
#include "transport/ucx/context.h"
#include "transport/ucx/socket_address.h"
#include "transport/ucx/ucx_data_plane.h"
#include "transport/ucx/ucx_link.h"
#include "transport/ucx/worker.h"

namespace lowkey::transport {

Result<UcxTransport> make_ucx_transport(boost::asio::io_context& io, ControlOptions options,
                                        ControlHandlers handlers) {
  LOWKEY_TRY(validate(options));
  options.self.rdma = has_active_rdma();
  LOWKEY_ASSIGN(listen, resolve(options.listen_host, 0));
  // A process that comes back to its port finds it held for a minute by what is left of its predecessor's
  // connections (TIME_WAIT). UCX 1.13 takes this setting of its connection manager from the environment alone.
  if (options.listen_port != 0) setenv("UCX_TCP_CM_REUSEADDR", "y", 0);
  LOWKEY_ASSIGN(ucp, Context::create(Context::Kind::kControl, device_of(listen)));
  const bool reaches_gpu_memory = ucp->reaches_gpu_memory();
  LOWKEY_ASSIGN(worker, Worker::create(std::move(ucp)));
  LOWKEY_ASSIGN(hub, UcxHub::create(io, std::move(worker)));
  LOWKEY_ASSIGN(links, UcxLinkProvider::create(hub, options.listen_host, options.listen_port));
  auto context = std::make_shared<SessionContext>(io, std::move(options), std::move(handlers));
  UcxTransport transport;
  transport.reaches_gpu_memory = reaches_gpu_memory;
  LOWKEY_ASSIGN(data, UcxDataPlane::create(context, std::move(hub)));
  transport.data = std::move(data);
  transport.control = std::make_unique<SessionPlane>(std::move(context), std::move(links));
  return transport;
}

}  // namespace lowkey::transport
