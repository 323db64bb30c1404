#include "transport/ucx/ucx_link.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cstring>

#include "base/log.h"
#include "transport/ucx/request.h"
#include "transport/ucx/socket_address.h"

namespace lowkey::transport {
namespace {

constexpr unsigned kActiveMessageId = 1;
constexpr size_t kMaxLingering = 256;  // closed links that wait for the peer; more are dropped at once

}  // namespace

// ---- hub ----

Result<std::shared_ptr<UcxHub>> UcxHub::create(boost::asio::io_context& io, std::shared_ptr<Worker> worker) {
  std::shared_ptr<UcxHub> hub(new UcxHub(io, std::move(worker)));
  ucp_am_handler_param_t param{};
  param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                     UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS;
  param.id = kActiveMessageId;
  param.flags = UCP_AM_FLAG_WHOLE_MSG;
  param.cb = on_active_message;
  param.arg = hub.get();
  const ucs_status_t status = ucp_worker_set_am_recv_handler(hub->worker_->native(), &param);
  if (status != UCS_OK) return ucx_error(status, "handler of active messages");
  hub->worker_->on_all_closed([weak = std::weak_ptr(hub)] {
    if (const auto self = weak.lock()) self->release_retired();
  });
  hub->loop_->kick();
  return hub;
}

UcxHub::UcxHub(boost::asio::io_context& io, std::shared_ptr<Worker> worker)
    : io_(io), worker_(worker), loop_(std::make_shared<ProgressLoop>(io, std::move(worker))) {}

UcxHub::~UcxHub() {
  ucp_am_handler_param_t param{};
  param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB;
  param.id = kActiveMessageId;
  param.cb = nullptr;
  ucp_worker_set_am_recv_handler(worker_->native(), &param);
}

void UcxHub::retire(size_t bytes, std::shared_ptr<void> memory) {
  boost::asio::post(io_, [weak = weak_from_this(), bytes, memory = std::move(memory)]() mutable {
    const auto self = weak.lock();
    if (!self) return;
    Retired retired{.bytes = bytes, .memory = std::move(memory), .users = {}};
    for (const auto& [endpoint, weak_link] : self->links_) {
      if (const auto link = weak_link.lock()) retired.users.push_back(link->endpoint_);
    }
    self->retired_.push_back(std::move(retired));
    self->release_retired();
  });
}

// Not while an endpoint closes: until it is closed, it may receive.
void UcxHub::release_retired() {
  if (worker_->closing() > 0) return;
  std::erase_if(retired_, [](const Retired& retired) {
    return std::ranges::all_of(retired.users, [](const auto& endpoint) { return endpoint.expired(); });
  });
}

uint64_t UcxHub::retired_bytes() const {
  uint64_t bytes = 0;
  for (const Retired& retired : retired_) bytes += retired.bytes;
  return bytes;
}

ucs_status_t UcxHub::on_active_message(void* self, const void* header, size_t header_length, void* data,
                                       size_t length, const ucp_am_recv_param_t* param) {
  auto* hub = static_cast<UcxHub*>(self);
  if (!(param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP)) return UCS_OK;
  const auto found = hub->links_.find(param->reply_ep);
  if (found == hub->links_.end()) return UCS_OK;
  const auto link = found->second.lock();
  if (!link) return UCS_OK;
  const bool rendezvous = param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV;
  uint16_t type = 0;
  if (rendezvous || header_length != sizeof type || length > link->receive_limit()) {
    const std::string what = fmt::format("message of {} bytes, at most {}", length, link->receive_limit());
    hub->worker_->defer([weak = std::weak_ptr<UcxLink>(link), what] {
      if (auto alive = weak.lock()) alive->fail({Code::kTooLarge, what});
    });
    return UCS_OK;
  }
  std::memcpy(&type, header, sizeof type);
  hub->worker_->defer([weak = std::weak_ptr<UcxLink>(link), type,
                       body = std::string(static_cast<const char*>(data), length)] {
    if (auto alive = weak.lock()) alive->receive(static_cast<MessageType>(type), body);
  });
  return UCS_OK;
}

// ---- link ----

UcxLink::UcxLink(std::shared_ptr<UcxHub> hub, std::string remote)
    : hub_(std::move(hub)), remote_(std::move(remote)), linger_timer_(hub_->io()) {}

UcxLink::~UcxLink() {
  hang_up();
}

Result<std::shared_ptr<UcxLink>> UcxLink::connect(std::shared_ptr<UcxHub> hub, const std::string& address) {
  LOWKEY_ASSIGN(resolved, parse_address(address));
  auto link = std::make_shared<UcxLink>(std::move(hub), address);
  LOWKEY_ASSIGN(endpoint, Endpoint::connect(link->hub_->worker(), resolved, link->on_error()));
  link->adopt(std::move(endpoint));
  return link;
}

Result<std::shared_ptr<UcxLink>> UcxLink::accept(std::shared_ptr<UcxHub> hub, ucp_conn_request_h request,
                                                 const std::string& client) {
  auto link = std::make_shared<UcxLink>(std::move(hub), client);
  LOWKEY_ASSIGN(endpoint, Endpoint::accept(link->hub_->worker(), request, link->on_error()));
  link->adopt(std::move(endpoint));
  return link;
}

Endpoint::OnError UcxLink::on_error() {
  return [weak = weak_from_this()](const Error& error) {
    if (auto self = weak.lock()) self->fail(error);
  };
}

void UcxLink::adopt(std::shared_ptr<Endpoint> endpoint) {
  endpoint_ = std::move(endpoint);
  hub_->links_.emplace(endpoint_->native(), weak_from_this());
  hub_->loop().kick();
}

void UcxLink::send(MessageType type, std::string body, std::function<void()> sent) {
  if (closed_) return sent();
  struct Message {  // UCX reads both until the request completes
    uint16_t type;
    std::string body;
  };
  auto message = std::make_shared<Message>(Message{static_cast<uint16_t>(type), std::move(body)});
  auto started = Request::start(
      hub_->worker(), "sending", UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_EAGER,
      [message, sent](ucs_status_t) { sent(); },
      [&](ucp_request_param_t& param) {
        return ucp_am_send_nbx(endpoint_->native(), kActiveMessageId, &message->type, sizeof message->type,
                               message->body.data(), message->body.size(), &param);
      });
  hub_->loop().kick();
  if (started.ok() && *started) return;
  sent();
  if (started.ok()) return;
  boost::asio::post(hub_->io(), [weak = weak_from_this(), error = started.error()] {
    if (auto self = weak.lock()) self->fail(error);
  });
}

void UcxLink::receive(MessageType type, std::string_view body) {
  const auto on_message = events_.on_message;
  if (!closed_ && on_message) on_message(type, body);
}

void UcxLink::fail(const Error& error) {
  const auto self = shared_from_this();
  hub_->lingering_.erase(self);
  const bool report = !std::exchange(closed_, true);
  const auto on_broken = std::move(events_.on_broken);
  hang_up();
  if (report && on_broken) on_broken(error);
}

// A forced close resets the socket and with it what the peer has not read yet, so a link with last words
// waits until the peer has hung up, which it does on a Goodbye.
void UcxLink::close(Duration linger) {
  if (std::exchange(closed_, true)) return;
  events_ = {};
  if (linger <= Duration::zero() || hub_->lingering_.size() >= kMaxLingering) return hang_up();
  hub_->lingering_.insert(shared_from_this());
  linger_timer_.expires_after(linger);
  linger_timer_.async_wait([weak = weak_from_this()](boost::system::error_code ec) {
    auto self = weak.lock();
    if (!ec && self) self->fail({Code::kCancelled, "closed"});
  });
}

void UcxLink::hang_up() {
  linger_timer_.cancel();
  events_ = {};
  if (!endpoint_) return;
  hub_->links_.erase(endpoint_->native());
  endpoint_.reset();
  hub_->loop().kick();
}

// ---- provider ----

Result<std::unique_ptr<UcxLinkProvider>> UcxLinkProvider::create(std::shared_ptr<UcxHub> hub,
                                                                 const std::string& listen_host,
                                                                 uint16_t listen_port) {
  std::unique_ptr<UcxLinkProvider> provider(new UcxLinkProvider(hub));
  LOWKEY_ASSIGN(address, resolve(listen_host, listen_port));
  LOWKEY_ASSIGN(listener, Listener::create(
                              hub->worker(), address,
                              [self = provider.get()](ucp_conn_request_h request, const std::string& client) {
                                auto link = UcxLink::accept(self->hub_, request, client);
                                if (!link.ok()) {
                                  spdlog::warn("connection from {}: {}", client, link.error().message);
                                } else if (self->on_inbound_) {
                                  self->on_inbound_(*link);
                                }
                              }));
  const uint16_t port = listener->port();
  const std::string host = format_address(is_wildcard(address) ? reachable_address() : address);
  provider->address_ = host.substr(0, host.rfind(':') + 1) + std::to_string(port);
  provider->listener_ = std::move(listener);
  return provider;
}

UcxLinkProvider::~UcxLinkProvider() {
  listener_.reset();
  hub_->worker()->finish_closing();
}

Result<std::shared_ptr<Link>> UcxLinkProvider::connect(const std::string& address) {
  LOWKEY_ASSIGN(link, UcxLink::connect(hub_, address));
  return std::shared_ptr<Link>(std::move(link));
}

}  // namespace lowkey::transport
