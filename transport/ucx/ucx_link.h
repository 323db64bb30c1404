// Links over UCX active messages. The message's type travels in the AM header, the body as its data, always
// by the eager protocol: a rendezvous could be overtaken by a shorter message, and would let the sender's
// address space be read on demand.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "transport/core/link.h"
#include "transport/ucx/endpoint.h"
#include "transport/ucx/listener.h"
#include "transport/ucx/progress_loop.h"

namespace lowkey::transport {

class UcxLink;

// What the links of one worker share.
class UcxHub : public std::enable_shared_from_this<UcxHub> {
 public:
  static Result<std::shared_ptr<UcxHub>> create(boost::asio::io_context& io, std::shared_ptr<Worker> worker);
  ~UcxHub();

  boost::asio::io_context& io() { return io_; }
  const std::shared_ptr<Worker>& worker() const { return worker_; }
  ProgressLoop& loop() { return *loop_; }
  const std::shared_ptr<ProgressLoop>& shared_loop() const { return loop_; }

  // Takes over memory that peers knew of: over a network it is this process's CPU that writes what arrives,
  // and what they had sent may arrive later. It goes when every connection of this moment is closed. Any
  // thread.
  void retire(size_t bytes, std::shared_ptr<void> memory);
  uint64_t retired_bytes() const;

 private:
  friend class UcxLink;
  struct Retired {
    size_t bytes = 0;
    std::shared_ptr<void> memory;
    std::vector<std::weak_ptr<Endpoint>> users;
  };
  void release_retired();
  UcxHub(boost::asio::io_context& io, std::shared_ptr<Worker> worker);
  static ucs_status_t on_active_message(void* self, const void* header, size_t header_length, void* data,
                                        size_t length, const ucp_am_recv_param_t* param);

  boost::asio::io_context& io_;
  const std::shared_ptr<Worker> worker_;
  const std::shared_ptr<ProgressLoop> loop_;
  std::map<ucp_ep_h, std::weak_ptr<UcxLink>> links_;
  std::set<std::shared_ptr<UcxLink>> lingering_;  // closed, waiting for the peer to hang up
  std::vector<Retired> retired_;
};

class UcxLink final : public Link, public std::enable_shared_from_this<UcxLink> {
 public:
  static Result<std::shared_ptr<UcxLink>> connect(std::shared_ptr<UcxHub> hub, const std::string& address);
  static Result<std::shared_ptr<UcxLink>> accept(std::shared_ptr<UcxHub> hub, ucp_conn_request_h request,
                                                 const std::string& client);
  UcxLink(std::shared_ptr<UcxHub> hub, std::string remote);
  ~UcxLink() override;

  void start(Events events) override { events_ = std::move(events); }
  void send(MessageType type, std::string body, std::function<void()> sent) override;
  void close(Duration linger) override;
  std::string remote() const override { return remote_; }
  const std::shared_ptr<Endpoint>& endpoint() const { return endpoint_; }

 private:
  friend class UcxHub;
  Endpoint::OnError on_error();
  void adopt(std::shared_ptr<Endpoint> endpoint);
  void receive(MessageType type, std::string_view body);
  void fail(const Error& error);
  void hang_up();

  const std::shared_ptr<UcxHub> hub_;
  const std::string remote_;
  std::shared_ptr<Endpoint> endpoint_;
  Events events_;
  bool closed_ = false;
  boost::asio::steady_timer linger_timer_;
};

class UcxLinkProvider final : public LinkProvider {
 public:
  static Result<std::unique_ptr<UcxLinkProvider>> create(std::shared_ptr<UcxHub> hub,
                                                         const std::string& listen_host,
                                                         uint16_t listen_port);
  ~UcxLinkProvider() override;  // after the links were closed: sees to it that the peers learn of it

  std::string address() const override { return address_; }
  Result<std::shared_ptr<Link>> connect(const std::string& address) override;
  void listen(std::function<void(std::shared_ptr<Link>)> on_inbound) override {
    on_inbound_ = std::move(on_inbound);
  }
  void stop_listening() override { listener_.reset(); }

 private:
  explicit UcxLinkProvider(std::shared_ptr<UcxHub> hub) : hub_(std::move(hub)) {}

  const std::shared_ptr<UcxHub> hub_;
  std::unique_ptr<Listener> listener_;
  std::string address_;
  std::function<void(std::shared_ptr<Link>)> on_inbound_;
};

}  // namespace lowkey::transport
