// Owner of a UCP listener bound to one address.
#pragma once

#include <sys/socket.h>
#include <ucp/api/ucp.h>

#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "transport/ucx/worker.h"

namespace lowkey::transport {

class Listener {
 public:
  // Deferred by the worker: the request must be given to Endpoint::accept. `client`: "host:port".
  using OnRequest = std::function<void(ucp_conn_request_h request, const std::string& client)>;

  static Result<std::unique_ptr<Listener>> create(std::shared_ptr<Worker> worker,
                                                  const sockaddr_storage& address, OnRequest on_request);
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  uint16_t port() const { return port_; }

 private:
  Listener(std::shared_ptr<Worker> worker, OnRequest on_request);
  static void on_connection(ucp_conn_request_h request, void* self);

  const std::shared_ptr<Worker> worker_;
  const std::shared_ptr<OnRequest> on_request_;  // shared with deferred requests; emptied in the destructor
  ucp_listener_h handle_ = nullptr;
  uint16_t port_ = 0;
};

}  // namespace lowkey::transport
