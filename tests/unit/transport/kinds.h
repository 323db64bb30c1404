// What the contract of control_plane.h and data_plane.h is held against: every implementation, by the same
// tests.
#pragma once

#include <gtest/gtest.h>

#include "tests/unit/transport/node.h"
#include "transport/core/link.h"
#include "transport/host_identity.h"
#include "transport/loopback/loopback_link.h"
#include "transport/loopback/loopback_network.h"
#include "transport/ucx/context.h"
#include "transport/ucx/ucx_link.h"
#include "transport/ucx/ucx_transport.h"

namespace lowkey::transport {

struct Loopback {
  std::shared_ptr<LoopbackNetwork> network = LoopbackNetwork::create();

  Node::Make make() {
    return [network = network](boost::asio::io_context& io, ControlOptions options,
                               ControlHandlers handlers) -> decltype(Node::Make()(io, options, handlers)) {
      LOWKEY_ASSIGN(transport, network->make_transport(io, std::move(options), std::move(handlers)));
      return std::pair(std::move(transport.control), std::move(transport.data));
    };
  }
  std::unique_ptr<LinkProvider> raw_links(boost::asio::io_context& io) {
    return std::make_unique<LoopbackLinkProvider>(io, network);
  }
  std::string nobody() { return "loopback:4711"; }
  const char* transport_name() { return "loopback"; }
  const char* device_name() { return "memory"; }
  bool is_measured() { return false; }
};

// Same host, so that transfers go through shared memory.
struct Ucx {
  virtual ~Ucx() = default;
  virtual std::string host() { return host_identity(); }
  virtual const char* transport_name() { return "shm"; }
  virtual const char* device_name() { return "/memory"; }
  bool is_measured() { return true; }

  Node::Make make() {
    return [host = host()](boost::asio::io_context& io, ControlOptions options,
                           ControlHandlers handlers) -> decltype(Node::Make()(io, options, handlers)) {
      options.self.host = host;
      LOWKEY_ASSIGN(transport, make_ucx_transport(io, std::move(options), std::move(handlers)));
      return std::pair(std::move(transport.control), std::move(transport.data));
    };
  }
  std::unique_ptr<LinkProvider> raw_links(boost::asio::io_context& io) {
    auto context = Context::create(Context::Kind::kControl, "lo").value();
    auto hub = UcxHub::create(io, Worker::create(std::move(context)).value()).value();
    return UcxLinkProvider::create(std::move(hub), "127.0.0.1", 0).value();
  }
  std::string nobody() { return "127.0.0.1:1"; }
};

// Processes that do not know a common host: transfers go over the network.
struct UcxNetwork : Ucx {
  std::string host() override { return ""; }
  const char* transport_name() override { return "tcp"; }
  const char* device_name() override { return "tcp/"; }
};

template <class Kind>
class TransportSuite : public ::testing::Test {
 public:
  std::unique_ptr<Node> node(ControlOptions options) {
    if (missed_heartbeats > 0) options.missed_heartbeats = missed_heartbeats;
    return std::make_unique<Node>(kind.make(), options);
  }
  std::unique_ptr<Node> server() { return node(test_options(Role::kStore, 3)); }
  std::unique_ptr<Node> client() { return node(test_options(Role::kWorker, 1)); }

  Kind kind;
  int missed_heartbeats = 0;  // of all nodes; 0: as their options have it
};

using Kinds = ::testing::Types<Loopback, Ucx, UcxNetwork>;

}  // namespace lowkey::transport
