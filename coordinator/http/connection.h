// One client connection: reads requests in order, hands each to the handler, writes its answer, and watches
// for the client's leaving meanwhile. Private to coordinator/http.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <functional>
#include <memory>

#include "coordinator/http/server.h"

namespace lowkey::coordinator {

class Connection {
 public:
  virtual ~Connection() = default;
  // Starts the coroutine; `done` is called when the connection is over. `refuse`: one 503 and out.
  virtual void start(bool refuse, std::function<void()> done) = 0;
  virtual void drain() = 0;  // closes when idle, otherwise after the current answer
  virtual void cut() = 0;    // closes now

  static std::shared_ptr<Connection> create(boost::asio::ip::tcp::socket socket, const ServerOptions& options,
                                            HttpHandler& handler, monitoring::Metrics& metrics);
};

}  // namespace lowkey::coordinator
