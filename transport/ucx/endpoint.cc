#include "transport/ucx/endpoint.h"

#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "transport/ucx/request.h"
#include "transport/ucx/socket_address.h"

namespace lowkey::transport {

Endpoint::Endpoint(std::shared_ptr<Worker> worker, OnError on_error)
    : worker_(std::move(worker)), on_error_(std::make_shared<OnError>(std::move(on_error))) {}

Result<std::shared_ptr<Endpoint>> Endpoint::connect(std::shared_ptr<Worker> worker,
                                                    const sockaddr_storage& address, OnError on_error) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&address);
  params.sockaddr.addrlen = length_of(address);
  return create(std::shared_ptr<Endpoint>(new Endpoint(std::move(worker), std::move(on_error))), params,
                "connecting");
}

Result<std::shared_ptr<Endpoint>> Endpoint::accept(std::shared_ptr<Worker> worker, ucp_conn_request_h request,
                                                   OnError on_error) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = request;
  return create(std::shared_ptr<Endpoint>(new Endpoint(std::move(worker), std::move(on_error))), params,
                "accepting");
}

Result<std::shared_ptr<Endpoint>> Endpoint::open(std::shared_ptr<Worker> worker, const std::string& address) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  return create(std::shared_ptr<Endpoint>(new Endpoint(std::move(worker), nullptr)), params, "shared memory");
}

Result<std::shared_ptr<Endpoint>> Endpoint::create(std::shared_ptr<Endpoint> endpoint,
                                                   ucp_ep_params_t& params, const char* what) {
  params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
  params.err_mode = UCP_ERR_HANDLING_MODE_NONE;
  if (*endpoint->on_error_) {
    endpoint->handles_errors_ = true;
    params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler = {.cb = on_error, .arg = endpoint.get()};
  }
  const ucs_status_t status = ucp_ep_create(endpoint->worker_->native(), &params, &endpoint->handle_);
  if (status != UCS_OK) {
    endpoint->handle_ = nullptr;
    return ucx_error(status, what);
  }
  return endpoint;
}

void Endpoint::on_error(void* self, ucp_ep_h, ucs_status_t status) {
  auto* endpoint = static_cast<Endpoint*>(self);
  endpoint->worker_->defer([handler = endpoint->on_error_, status] {
    if (*handler) std::exchange(*handler, nullptr)(ucx_error(status, "connection"));
  });
}

Endpoint::~Endpoint() {
  *on_error_ = nullptr;
  if (!handle_) return;
  worker_->closing_begins();
  auto closing = Request::start(
      worker_, "closing", handles_errors_ ? UCP_EP_CLOSE_FLAG_FORCE : 0,
      [worker = worker_.get()](ucs_status_t) { worker->closing_ends(); },
      [&](ucp_request_param_t& param) { return ucp_ep_close_nbx(handle_, &param); });
  if (closing.ok() && *closing) return;
  worker_->closing_ends();
  if (!closing.ok()) spdlog::debug("closing an endpoint: {}", closing.error().message);
}

std::vector<Lane> Endpoint::transfer_lanes() const {
  char* text = nullptr;
  size_t length = 0;
  std::FILE* stream = open_memstream(&text, &length);
  if (!stream) return {};
  ucp_ep_print_info(handle_, stream);
  std::fclose(stream);
  const std::vector<Lane> lanes = parse_endpoint_info({text, length});
  std::free(text);
  return transport::transfer_lanes(lanes);
}

}  // namespace lowkey::transport
