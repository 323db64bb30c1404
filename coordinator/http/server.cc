#include "coordinator/http/server.h"

#include <spdlog/spdlog.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <unordered_map>

#include "coordinator/http/connection.h"
#include "monitoring/metrics.h"

namespace lowkey::coordinator {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using monitoring::Metric;

// Connections over the bound that may be told so at once; more are closed without a word.
constexpr size_t kMaxRefusing = 64;
// After accept() failed for want of descriptors or memory.
constexpr auto kAcceptPause = std::chrono::milliseconds(100);

}  // namespace

struct Server::Impl : std::enable_shared_from_this<Server::Impl> {
  Impl(asio::io_context& io_context, ServerOptions server_options, HttpHandler& http_handler,
       monitoring::Metrics& server_metrics)
      : io(io_context),
        options(std::move(server_options)),
        handler(http_handler),
        metrics(server_metrics),
        acceptor(io),
        pause(io) {}

  Status listen() {
    error_code ec;
    tcp::resolver resolver(io);
    const auto found = resolver.resolve(options.listen, std::to_string(options.port),
                                        tcp::resolver::passive | tcp::resolver::numeric_service, ec);
    if (ec || found.empty())
      return Error{Code::kUsage, fmt::format("--listen {}: {}", options.listen, ec.message()), "listen"};
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor.open(endpoint.protocol(), ec);
    if (!ec) acceptor.set_option(asio::socket_base::reuse_address(true), ec);
    if (!ec) acceptor.bind(endpoint, ec);
    if (!ec) acceptor.listen(asio::socket_base::max_listen_connections, ec);
    if (ec) {
      return Error{Code::kUnavailable,
                   fmt::format("cannot listen on {}:{}: {}", options.listen, options.port, ec.message()),
                   "port"};
    }
    options.port = acceptor.local_endpoint(ec).port();
    return {};
  }

  void accept() {
    acceptor.async_accept([self = shared_from_this()](error_code ec, tcp::socket socket) {
      if (!self->acceptor.is_open()) return;
      if (ec) {
        spdlog::warn("HTTP accept: {}", ec.message());
        self->pause.expires_after(kAcceptPause);
        self->pause.async_wait([self](error_code cancelled) {
          if (!cancelled && self->acceptor.is_open()) self->accept();
        });
        return;
      }
      self->adopt(std::move(socket));
      self->accept();
    });
  }

  void adopt(tcp::socket socket) {
    const bool refuse = connections.size() - refusing >= options.max_connections;
    if (refuse && refusing >= kMaxRefusing) return;
    if (refuse) {
      ++refusing;
      metrics.add(Metric::kRejectedRequests, 1, {{"reason", "connections"}});
    }
    const uint64_t id = next_id++;
    auto connection = Connection::create(std::move(socket), options, handler, metrics);
    connections.emplace(id, connection);
    if (draining) connection->drain();
    metrics.set(Metric::kHttpConnections, static_cast<double>(connections.size()));
    // Holds this alive: the connection refers to the options.
    connection->start(refuse, [self = shared_from_this(), id, refuse] { self->remove(id, refuse); });
  }

  void remove(uint64_t id, bool refused) {
    connections.erase(id);
    if (refused) --refusing;
    metrics.set(Metric::kHttpConnections, static_cast<double>(connections.size()));
    tell_when_empty();
  }

  void tell_when_empty() {
    if (!closed || !connections.empty()) return;
    asio::post(io, std::exchange(closed, nullptr));
  }

  template <class Action>
  void for_each(Action action) {
    std::vector<std::shared_ptr<Connection>> all;  // a copy: the action may end a connection
    for (auto& [id, connection] : connections) all.push_back(connection);
    for (auto& connection : all) action(*connection);
  }

  void stop_accepting() {
    error_code ignored;
    acceptor.close(ignored);
    pause.cancel();
  }

  asio::io_context& io;
  ServerOptions options;
  HttpHandler& handler;
  monitoring::Metrics& metrics;
  tcp::acceptor acceptor;
  asio::steady_timer pause;
  std::unordered_map<uint64_t, std::shared_ptr<Connection>> connections;
  size_t refusing = 0;  // of those
  uint64_t next_id = 1;
  bool draining = false;  // one answer per connection
  std::function<void()> closed;
};

Server::Server(asio::io_context& io, ServerOptions options, HttpHandler& handler,
               monitoring::Metrics& metrics)
    : impl_(std::make_shared<Impl>(io, std::move(options), handler, metrics)) {}

Server::~Server() {
  impl_->closed = nullptr;
  impl_->stop_accepting();
  cut();
}

Status Server::start() {
  LOWKEY_TRY(impl_->listen());
  impl_->metrics.set(Metric::kHttpConnections, 0);
  impl_->accept();
  return {};
}

int Server::port() const {
  return impl_->options.port;
}
size_t Server::connections() const {
  return impl_->connections.size();
}

void Server::drain() {
  impl_->draining = true;
  impl_->for_each([](Connection& connection) { connection.drain(); });
}

void Server::stop(std::function<void()> closed) {
  impl_->stop_accepting();
  drain();
  impl_->closed = std::move(closed);
  impl_->tell_when_empty();
}

void Server::cut() {
  impl_->for_each([](Connection& connection) { connection.cut(); });
}

}  // namespace lowkey::coordinator
