// One end of a link between two "processes" of a LoopbackNetwork, and the provider that makes them.
#pragma once

#include <memory>

#include "transport/core/link.h"

namespace lowkey::transport {

class LoopbackNetwork;

class LoopbackLink final : public Link, public std::enable_shared_from_this<LoopbackLink> {
 public:
  LoopbackLink(std::shared_ptr<LoopbackNetwork> network, std::string local, std::string remote);
  static void pair(const std::shared_ptr<LoopbackLink>& a, const std::shared_ptr<LoopbackLink>& b);

  void start(Events events) override { events_ = std::move(events); }
  void send(MessageType type, std::string body, std::function<void()> sent) override;
  void close(Duration linger) override;
  std::string remote() const override { return remote_; }
  const std::string& local() const { return local_; }

  void receive(MessageType type, std::string_view body);
  void fail(const Error& error);

 private:
  const std::shared_ptr<LoopbackNetwork> network_;
  const std::string local_, remote_;
  std::weak_ptr<LoopbackLink> other_;
  Events events_;
  bool closed_ = false;
};

class LoopbackLinkProvider final : public LinkProvider {
 public:
  LoopbackLinkProvider(boost::asio::io_context& io, std::shared_ptr<LoopbackNetwork> network);
  ~LoopbackLinkProvider() override;

  std::string address() const override { return address_; }
  Result<std::shared_ptr<Link>> connect(const std::string& address) override;
  void listen(std::function<void(std::shared_ptr<Link>)> on_inbound) override;
  void stop_listening() override;

 private:
  const std::shared_ptr<LoopbackNetwork> network_;
  const std::shared_ptr<std::function<void(std::shared_ptr<Link>)>> on_inbound_;
  const std::string address_;
};

}  // namespace lowkey::transport
