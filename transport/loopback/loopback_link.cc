#include "transport/loopback/loopback_link.h"

#include "transport/loopback/loopback_network.h"

namespace lowkey::transport {

LoopbackLink::LoopbackLink(std::shared_ptr<LoopbackNetwork> network, std::string local, std::string remote)
    : network_(std::move(network)), local_(std::move(local)), remote_(std::move(remote)) {}

void LoopbackLink::pair(const std::shared_ptr<LoopbackLink>& a, const std::shared_ptr<LoopbackLink>& b) {
  a->other_ = b;
  b->other_ = a;
  a->network_->track(a, b);
}

void LoopbackLink::send(MessageType type, std::string body, std::function<void()> sent) {
  if (closed_) {
    network_->run_at(local_, std::move(sent));
    return;
  }
  // Copies of a task share the body; the receiver hands `sent` back to this thread.
  auto message = std::make_shared<const std::string>(std::move(body));
  auto task = [other = other_, type, message, sent, network = network_, back = local_] {
    if (auto link = other.lock()) link->receive(type, *message);
    network->run_at(back, sent);
  };
  if (!network_->deliver(local_, remote_, std::move(task))) network_->run_at(local_, std::move(sent));
}

void LoopbackLink::receive(MessageType type, std::string_view body) {
  if (closed_) return;
  if (body.size() > receive_limit()) {
    auto self = shared_from_this();
    fail({Code::kTooLarge, fmt::format("message of {} bytes, at most {}", body.size(), receive_limit())});
    close(Duration::zero());
    return;
  }
  const auto on_message = events_.on_message;
  if (on_message) on_message(type, body);
}

void LoopbackLink::fail(const Error& error) {
  if (closed_) return;
  closed_ = true;
  const auto on_broken = std::move(events_.on_broken);
  events_ = {};
  if (on_broken) on_broken(error);
}

void LoopbackLink::close(Duration) {
  closed_ = true;
  events_ = {};
  network_->deliver(local_, remote_, [other = other_] {
    if (auto link = other.lock()) link->fail({Code::kUnavailable, "connection reset by peer"});
  });
}

LoopbackLinkProvider::LoopbackLinkProvider(boost::asio::io_context& io,
                                           std::shared_ptr<LoopbackNetwork> network)
    : network_(std::move(network)),
      on_inbound_(std::make_shared<std::function<void(std::shared_ptr<Link>)>>()),
      address_(network_->join(io, [handler = on_inbound_](std::shared_ptr<Link> link) {
        if (*handler) (*handler)(std::move(link));
      })) {}

LoopbackLinkProvider::~LoopbackLinkProvider() {
  network_->leave(address_);
}

Result<std::shared_ptr<Link>> LoopbackLinkProvider::connect(const std::string& address) {
  auto here = std::make_shared<LoopbackLink>(network_, address_, address);
  auto there = std::make_shared<LoopbackLink>(network_, address, address_);
  LoopbackLink::pair(here, there);
  if (!network_->accept(address_, address, std::move(there))) {
    return Error{Code::kUnavailable, fmt::format("nobody listens at {}", address)};
  }
  return std::shared_ptr<Link>(std::move(here));
}

void LoopbackLinkProvider::listen(std::function<void(std::shared_ptr<Link>)> on_inbound) {
  *on_inbound_ = std::move(on_inbound);
}

void LoopbackLinkProvider::stop_listening() {
  *on_inbound_ = nullptr;
}

}  // namespace lowkey::transport
