// HTTP/1.1 server on Boost.Beast: keep-alive, pipelining (answered in order), Expect: 100-continue, chunked
// streaming, and a bound and a deadline on everything a client can make it hold. One coroutine per
// connection, all on the io_context's single thread; nothing here throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/deadline.h"
#include "base/result.h"
#include "coordinator/http/exchange.h"

namespace boost::asio {
class io_context;
}
namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::coordinator {

struct ServerOptions {
  std::string listen = "127.0.0.1";
  int port = 0;  // 0: a free one, see Server::port()
  size_t header_bytes = 16 << 10;
  size_t body_bytes = 8 << 20;
  size_t stream_buffer_bytes = 1 << 20;  // queued for a client that does not read
  int socket_send_bytes = 256 << 10;     // kernel's part of that queue; fixed, or it grows to megabytes
  size_t max_connections = 1024;         // beyond: 503
  Duration read_deadline = std::chrono::seconds(30);   // a whole header (idle time counted), a whole body
  Duration write_deadline = std::chrono::seconds(30);  // one write: a whole answer, or 256 KiB of a stream
};

class Server {
 public:
  // `handler` outlives the server, `metrics` the last run of the io_context.
  Server(boost::asio::io_context& io, ServerOptions options, HttpHandler& handler,
         monitoring::Metrics& metrics);
  ~Server();  // cuts every connection

  Status start();  // kUnavailable: the address cannot be bound
  int port() const;
  size_t connections() const;

  // Idle connections close now, the others after their current answer. New connections are still accepted, so
  // that a client reads a 503 instead of a refused connection.
  void drain();
  // Stops accepting; `closed` is called once the last connection has gone (possibly at once, never from
  // inside).
  void stop(std::function<void()> closed);
  // Cuts whatever is left.
  void cut();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace lowkey::coordinator
