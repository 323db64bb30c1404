// Owner of a UCP endpoint. Closing starts in the destructor and does not wait.
//
// With error handling (control) the close is forced: UCX ends all that is under way with UCS_ERR_CANCELED.
// Without (same host) UCX 1.13 refuses a forced close, and a flushing one does not end while an operation
// hangs on a dead peer; the endpoint then stays with its worker, which counts it (Worker::closing).
#pragma once

#include <sys/socket.h>
#include <ucp/api/ucp.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "transport/ucx/endpoint_info.h"
#include "transport/ucx/worker.h"

namespace lowkey::transport {

class Endpoint {
 public:
  // Deferred by the worker; at most once; never after the destructor.
  using OnError = std::function<void(const Error&)>;

  static Result<std::shared_ptr<Endpoint>> connect(std::shared_ptr<Worker> worker,
                                                   const sockaddr_storage& address, OnError on_error);
  static Result<std::shared_ptr<Endpoint>> accept(std::shared_ptr<Worker> worker, ucp_conn_request_h request,
                                                  OnError on_error);
  // Same host, without error handling. `address`: Worker::address() of the peer.
  static Result<std::shared_ptr<Endpoint>> open(std::shared_ptr<Worker> worker, const std::string& address);
  ~Endpoint();
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  ucp_ep_h native() const { return handle_; }
  const std::shared_ptr<Worker>& worker() const { return worker_; }
  // What UCX chose for puts and gets; empty when it cannot be told. Once the connection is up.
  std::vector<Lane> transfer_lanes() const;

 private:
  Endpoint(std::shared_ptr<Worker> worker, OnError on_error);
  static Result<std::shared_ptr<Endpoint>> create(std::shared_ptr<Endpoint> endpoint, ucp_ep_params_t& params,
                                                  const char* what);
  static void on_error(void* self, ucp_ep_h, ucs_status_t status);

  const std::shared_ptr<Worker> worker_;
  // Shared with deferred error reports, which find it empty once the endpoint is gone.
  const std::shared_ptr<OnError> on_error_;
  ucp_ep_h handle_ = nullptr;
  bool handles_errors_ = false;
};

}  // namespace lowkey::transport
