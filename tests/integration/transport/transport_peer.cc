// A store-like process for ucx_processes_test: prints its control address, sends every peer a PoolInfo,
// answers a MetricsRequest with the CPU seconds it has used, echoes the rest; ends when its standard input
// does.
#include <sys/resource.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdio>
#include <cstring>

#include "transport/host_identity.h"
#include "transport/ucx/ucx_transport.h"
#include "transport/wire/lowkey.pb.h"

namespace {

using namespace lowkey;
using namespace lowkey::transport;

std::string cpu_seconds() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return std::to_string(used.ru_utime.tv_sec + used.ru_stime.tv_sec +
                        1e-6 * (used.ru_utime.tv_usec + used.ru_stime.tv_usec));
}

int run(const std::string& where, size_t pool_bytes) {
  boost::asio::io_context io;
  std::string handle, data_address;
  ControlOptions options;
  options.cluster_secret = "0123456789abcdef0123456789abcdef";
  options.missed_heartbeats = 60;  // a test whose threads are not scheduled for seconds is not dead
  options.handshake_deadline = std::chrono::seconds(20);
  options.self.role = Role::kStore;
  options.self.host = where == "same-host" ? host_identity() : "";
  ControlHandlers handlers;
  handlers.on_up = [&](const ConnectionPtr& peer) {
    wire::PoolInfo info;
    info.set_data_address(data_address);
    info.set_remote_handle(handle);
    info.set_capacity_bytes(pool_bytes);
    (void)peer->send(MessageType::kPoolInfo, info.SerializeAsString());
  };
  handlers.on_message = [](const ConnectionPtr& peer, MessageType type, std::string_view body) {
    const bool usage = type == MessageType::kMetricsRequest;
    (void)peer->send(usage ? MessageType::kMetricsReply : type, usage ? cpu_seconds() : std::string(body));
  };
  auto transport = make_ucx_transport(io, options, handlers);
  if (!transport.ok()) {
    std::fprintf(stderr, "%s\n", transport.error().message.c_str());
    return 4;
  }
  auto pool = transport->data->allocate(pool_bytes);
  if (!pool.ok()) {
    std::fprintf(stderr, "%s\n", pool.error().message.c_str());
    return 4;
  }
  handle = (*pool)->remote_handle();
  data_address = transport->data->address();
  std::memset((*pool)->bytes().data(), 0x5a, pool_bytes);
  std::printf("%s\n", transport->control->address().c_str());
  std::fflush(stdout);

  boost::asio::posix::stream_descriptor input(io, dup(0));
  input.async_wait(boost::asio::posix::descriptor_base::wait_read,
                   [&](boost::system::error_code) { io.stop(); });
  io.run();
  transport->data.reset();
  transport->control.reset();
  return 0;
}

}  // namespace

int main(int, char** arguments) {
  return run(arguments[1], std::stoul(arguments[2]));
}
