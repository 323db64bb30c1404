// A store in a process of its own, over UCX, for tests: prints its address and serves until stdin ends, so
// that it never outlives the test.
//   store_process HOST_BYTES LEASE_MS HOST_NAME
// HOST_NAME empty: this process knows of no common host with its peers, so transfers go over the network.
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdio>
#include <string>

#include "kvstore/service/store_service.h"
#include "monitoring/metrics.h"
#include "transport/ucx/ucx_transport.h"

int main(int argc, char** argv) {
  using namespace lowkey;
  if (argc != 4) return 2;
  boost::asio::io_context io;
  monitoring::Metrics metrics({{"role", "store"}, {"rank", "9"}});
  std::shared_ptr<kvstore::StoreService> service;
  transport::ControlOptions options;
  options.self.role = transport::Role::kStore;
  options.self.world_rank = 9;
  options.self.host = argv[3];
  options.cluster_secret = "0123456789abcdef0123456789abcdef";
  options.missed_heartbeats = 60;  // a test whose threads are not scheduled for seconds is not dead
  options.handshake_deadline = std::chrono::seconds(20);
  transport::ControlHandlers handlers;
  handlers.on_up = [&](const auto& peer) { service->on_up(peer); };
  handlers.on_message = [&](const auto& peer, auto type, auto body) {
    service->on_message(peer, type, body);
  };
  handlers.on_down = [&](const auto& peer, const auto&) { service->on_down(peer); };
  auto transport = transport::make_ucx_transport(io, options, std::move(handlers));
  if (!transport) {
    std::fprintf(stderr, "%s\n", transport.error().message.c_str());
    return 4;
  }
  auto made = kvstore::StoreService::make(
      io, *transport->data, metrics,
      {.host_bytes = std::stoull(argv[1]), .lease_ttl = std::chrono::milliseconds(std::stoi(argv[2]))});
  if (!made) {
    std::fprintf(stderr, "%s\n", made.error().message.c_str());
    return 4;
  }
  service = *made;
  std::printf("%s\n", transport->control->address().c_str());
  std::fflush(stdout);
  boost::asio::posix::stream_descriptor input(io, ::dup(STDIN_FILENO));
  char byte;
  input.async_read_some(boost::asio::buffer(&byte, 1), [&](const auto&, size_t) { io.stop(); });
  io.run();
  transport->data.reset();
  transport->control.reset();
  service.reset();  // its pool last: until the connections are gone, what arrives is written there
  return 0;
}
