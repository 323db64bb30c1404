#include "coordinator/http/connection.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/http/chunk_encode.hpp>

#include "coordinator/http/exchange_state.h"
#include "coordinator/http/incoming_request.h"
#include "monitoring/metrics.h"

namespace lowkey::coordinator {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using monitoring::Metric;

// Errors come back as values; nothing here throws on a client's behaviour.
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

// Requests a client may pipeline behind the one being answered; beyond it the socket is left unread.
constexpr size_t kPipelineBytes = 64 << 10;
// Of a stream, what is written under one deadline.
constexpr size_t kWriteBytes = 256 << 10;
// What a refused client may still send before we stop listening to it: closing a socket with unread bytes
// resets the connection and can destroy the answer on its way.
constexpr size_t kLingerBytes = 16 << 20;
constexpr auto kLingerDeadline = std::chrono::seconds(2);

template <class Body>
void set_head(http::response<Body>& message, const HttpResponse& response, bool keep_alive) {
  message.set(http::field::server, "lowkey");
  // Pages of any origin may call the API and read its answers, as vLLM and llama.cpp have it.
  message.set(http::field::access_control_allow_origin, "*");
  message.set(http::field::access_control_expose_headers, "*");
  if (!response.content_type.empty()) message.set(http::field::content_type, response.content_type);
  for (const auto& [name, value] : response.headers) message.set(name, value);
  message.keep_alive(keep_alive);
}

class BeastConnection final : public Connection, public std::enable_shared_from_this<BeastConnection> {
 public:
  BeastConnection(tcp::socket socket, const ServerOptions& options, HttpHandler& handler,
                  monitoring::Metrics& metrics)
      : stream_(std::move(socket)), options_(options), handler_(handler), metrics_(metrics) {}

  void start(bool refuse, std::function<void()> done) override {
    error_code ignored;
    stream_.socket().set_option(tcp::no_delay(true), ignored);
    stream_.socket().set_option(asio::socket_base::send_buffer_size(options_.socket_send_bytes), ignored);
    auto self = shared_from_this();
    asio::co_spawn(
        stream_.get_executor(), [self, refuse] { return refuse ? self->refuse() : self->serve(); },
        [self, done = std::move(done)](std::exception_ptr error) {
          self->close();
          if (self->exchange_) self->exchange_->end(false);
          self->exchange_.reset();
          if (error) self->log(error);
          done();
        });
  }

  void drain() override {
    draining_ = true;
    if (idle_) close();
  }

  void cut() override { close(); }

 private:
  void close() {
    error_code ignored;
    stream_.socket().close(ignored);
  }

  static void log(std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& e) {
      spdlog::error("HTTP connection ended by an exception: {}", e.what());
    }
  }

  awaitable<void> serve() {
    do {
      IncomingRequest incoming(options_);
      idle_ = buffer_.size() == 0;
      stream_.expires_after(options_.read_deadline);
      auto [ec, n] = co_await http::async_read_header(stream_, buffer_, incoming.parser(), kAwait);
      idle_ = false;
      if (ec) {
        co_await fail(ec, "header");
        co_return;
      }
      if (std::optional<HttpResponse> refusal = incoming.screen(handler_)) {
        if (!co_await answer(incoming, std::move(*refusal))) co_return;
        continue;
      }
      if (!incoming.complete() && !co_await read_body(incoming)) co_return;
      if (!co_await exchange(incoming)) co_return;
    } while (!draining_);
  }

  awaitable<bool> read_body(IncomingRequest& incoming) {
    stream_.expires_after(options_.read_deadline);
    if (incoming.wants_continue()) {
      http::response<http::empty_body> go_on{http::status::continue_, incoming.header().version()};
      auto [write_ec, written] = co_await http::async_write(stream_, go_on, kAwait);
      if (write_ec) co_return false;
    }
    auto [ec, n] = co_await http::async_read(stream_, buffer_, incoming.parser(), kAwait);
    if (!ec) co_return true;
    endpoint_ = incoming.request().endpoint;
    co_await fail(ec, "body");
    co_return false;
  }

  // Hands the request to the handler and writes its answer; false: the connection is over.
  awaitable<bool> exchange(IncomingRequest& incoming) {
    using namespace asio::experimental::awaitable_operators;
    exchange_ = std::make_shared<ExchangeState>(stream_.get_executor(), incoming.take(),
                                                options_.stream_buffer_bytes);
    auto current = exchange_;
    handler_.handle(current);
    auto outcome = co_await (write_answer(*current, incoming.header(), incoming.keep_alive()) || watch() ||
                             overflow(*current));
    const bool written = outcome.index() == 0 && std::get<0>(outcome) != Written::kFailed;
    exchange_.reset();
    if (!written) close();
    current->end(written);
    if (!written) co_return false;
    if (std::get<0>(outcome) == Written::kKeepAlive) co_return true;
    co_await linger();
    co_return false;
  }

  enum class Written { kFailed, kClose, kKeepAlive };

  awaitable<Written> write_answer(ExchangeState& current, const http::request_header<>& header,
                                  bool keep_alive) {
    while (!current.has_head()) co_await current.wake().async_wait(kAwait);
    const bool chunkable = header.version() >= 11;  // otherwise the end of the connection ends a stream
    const bool go_on =
        keep_alive && !current.head().close && !draining_ && (chunkable || !current.streaming());
    bool ok = false;
    if (current.streaming()) {
      ok = co_await write_stream(current, header.version(), go_on);
    } else {
      ok = co_await write_whole(current.request(), current.head(), header, go_on);
    }
    if (!ok) co_return Written::kFailed;
    co_return go_on && !current.close_after() ? Written::kKeepAlive : Written::kClose;
  }

  awaitable<bool> write_whole(const HttpRequest& request, const HttpResponse& response,
                              const http::request_header<>& header, bool keep_alive) {
    count(request.endpoint, response.status);
    stream_.expires_after(options_.write_deadline);
    error_code ec;
    size_t n = 0;
    if (header.method() == http::verb::head) {
      http::response<http::empty_body> message{http::int_to_status(response.status), header.version()};
      set_head(message, response, keep_alive);
      message.content_length(response.body.size());
      std::tie(ec, n) = co_await http::async_write(stream_, message, kAwait);
    } else {
      http::response<http::span_body<const char>> message{http::int_to_status(response.status),
                                                          header.version()};
      set_head(message, response, keep_alive);
      message.body() = beast::span<const char>(response.body.data(), response.body.size());
      message.prepare_payload();
      std::tie(ec, n) = co_await http::async_write(stream_, message, kAwait);
    }
    note_stall(ec);
    co_return !ec;
  }

  awaitable<bool> write_stream(ExchangeState& current, unsigned version, bool keep_alive) {
    count(current.request().endpoint, current.head().status);
    const bool chunked = version >= 11;
    http::response<http::empty_body> message{http::int_to_status(current.head().status), version};
    set_head(message, current.head(), keep_alive);
    message.chunked(chunked);
    http::response_serializer<http::empty_body> serializer{message};
    stream_.expires_after(options_.write_deadline);
    auto [head_ec, head_n] = co_await http::async_write_header(stream_, serializer, kAwait);
    if (head_ec) co_return false;
    for (;;) {
      if (current.overflowed()) co_return false;
      if (!current.has_pending() && current.finished()) break;
      if (!current.has_pending()) {
        co_await current.wake().async_wait(kAwait);
        continue;
      }
      const std::string pieces = current.take_pending();
      for (std::string_view rest = pieces; !rest.empty();
           rest.remove_prefix(std::min(rest.size(), kWriteBytes)))
        if (!co_await write_piece(rest.substr(0, kWriteBytes), chunked)) co_return false;
    }
    if (!chunked) co_return true;
    stream_.expires_after(options_.write_deadline);
    auto [ec, n] = co_await asio::async_write(stream_, http::make_chunk_last(), kAwait);
    co_return !ec;
  }

  awaitable<bool> write_piece(std::string_view piece, bool chunked) {
    stream_.expires_after(options_.write_deadline);
    error_code ec;
    size_t n = 0;
    if (chunked) {
      std::tie(ec, n) = co_await asio::async_write(
          stream_, http::make_chunk(asio::buffer(piece.data(), piece.size())), kAwait);
    } else {
      std::tie(ec, n) = co_await asio::async_write(stream_, asio::buffer(piece.data(), piece.size()), kAwait);
    }
    note_stall(ec);
    co_return !ec;
  }

  // Returns when the client has closed. Bytes that arrive meanwhile are pipelined requests: kept for the next
  // turn.
  awaitable<void> watch() {
    for (;;) {
      if (buffer_.size() >= kPipelineBytes) {
        asio::steady_timer forever(stream_.get_executor(), asio::steady_timer::time_point::max());
        co_await forever.async_wait(kAwait);
        co_return;
      }
      auto [ec, n] = co_await stream_.socket().async_read_some(buffer_.prepare(4096), kAwait);
      buffer_.commit(n);
      if (ec) co_return;
    }
  }

  // Returns when the client has let too much pile up: also in the middle of a write, which would only end at
  // its deadline.
  awaitable<void> overflow(ExchangeState& current) {
    while (!current.overflowed()) co_await current.overflow().async_wait(kAwait);
    cut_off("not_reading");
  }

  awaitable<bool> answer(const IncomingRequest& incoming, HttpResponse response) {
    const bool go_on = incoming.keep_alive() && !response.close && !draining_;
    if (!co_await write_whole(incoming.request(), response, incoming.header(), go_on)) co_return false;
    if (!go_on) co_await linger();
    co_return go_on;
  }

  awaitable<void> fail(error_code ec, const char* what) {
    if (ec == beast::error::timeout) {
      if (buffer_.size() > 0 || what == std::string_view("body")) cut_off("slow_request");
      co_return;
    }
    const ReadFailure failure = read_failure(ec, options_);
    if (failure.status == 0) co_return;
    co_await answer_and_close(failure.status, failure.message);
  }

  awaitable<void> refuse() {
    co_await answer_and_close(503, fmt::format("more than {} connections", options_.max_connections));
  }

  awaitable<void> answer_and_close(int status, const std::string& message) {
    HttpRequest request;
    request.endpoint = endpoint_;
    http::request_header<> header;
    header.version(11);
    HttpResponse response = handler_.error_response(status, message);
    if (co_await write_whole(request, response, header, false)) co_await linger();
  }

  // Lets the answer reach a client that is still sending.
  awaitable<void> linger() {
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    stream_.expires_after(kLingerDeadline);
    std::string sink(16 << 10, '\0');
    for (size_t total = 0; total < kLingerBytes;) {
      auto [ec, n] = co_await stream_.async_read_some(asio::buffer(sink), kAwait);
      if (ec) break;
      total += n;
    }
  }

  void count(std::string_view endpoint, int status) {
    metrics_.add(Metric::kHttpRequests, 1,
                 {{"endpoint", std::string(endpoint)}, {"status", std::to_string(status)}});
  }
  void cut_off(const char* reason) { metrics_.add(Metric::kClientsCutOff, 1, {{"reason", reason}}); }
  void note_stall(const error_code& ec) {
    if (ec == beast::error::timeout) cut_off("not_reading");
  }

  beast::tcp_stream stream_;
  beast::flat_buffer buffer_{kPipelineBytes + (128 << 10)};
  const ServerOptions& options_;
  HttpHandler& handler_;
  monitoring::Metrics& metrics_;
  std::shared_ptr<ExchangeState> exchange_;  // while one is being answered
  std::string_view endpoint_ = "other";
  bool idle_ = false;
  bool draining_ = false;
};

}  // namespace

std::shared_ptr<Connection> Connection::create(tcp::socket socket, const ServerOptions& options,
                                               HttpHandler& handler, monitoring::Metrics& metrics) {
  return std::make_shared<BeastConnection>(std::move(socket), options, handler, metrics);
}

}  // namespace lowkey::coordinator
