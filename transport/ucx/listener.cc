#include "transport/ucx/listener.h"

#include "base/log.h"
#include "transport/ucx/socket_address.h"
#include "transport/ucx/ucx_status.h"

namespace lowkey::transport {

Listener::Listener(std::shared_ptr<Worker> worker, OnRequest on_request)
    : worker_(std::move(worker)), on_request_(std::make_shared<OnRequest>(std::move(on_request))) {}

Result<std::unique_ptr<Listener>> Listener::create(std::shared_ptr<Worker> worker,
                                                   const sockaddr_storage& address, OnRequest on_request) {
  std::unique_ptr<Listener> listener(new Listener(std::move(worker), std::move(on_request)));
  ucp_listener_params_t params{};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&address);
  params.sockaddr.addrlen = length_of(address);
  params.conn_handler = {.cb = on_connection, .arg = listener.get()};
  ucs_status_t status = ucp_listener_create(listener->worker_->native(), &params, &listener->handle_);
  if (status != UCS_OK) {
    listener->handle_ = nullptr;
    return ucx_error(status, "listening at " + format_address(address));
  }
  ucp_listener_attr_t attributes{};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  status = ucp_listener_query(listener->handle_, &attributes);
  if (status != UCS_OK) return ucx_error(status, "port of the listener");
  listener->port_ = port_of(attributes.sockaddr);
  return listener;
}

void Listener::on_connection(ucp_conn_request_h request, void* self) {
  auto* listener = static_cast<Listener*>(self);
  ucp_conn_request_attr_t attributes{};
  attributes.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR;
  std::string client = "unknown";
  if (ucp_conn_request_query(request, &attributes) == UCS_OK)
    client = format_address(attributes.client_address);
  // A request that is deferred past the listener's end is lost with it: UCX frees it with the worker.
  listener->worker_->defer([handler = listener->on_request_, request, client] {
    if (*handler) (*handler)(request, client);
  });
}

Listener::~Listener() {
  *on_request_ = nullptr;
  if (handle_) ucp_listener_destroy(handle_);
}

}  // namespace lowkey::transport
