#include "tests/integration/api/http_client.h"

#include <poll.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

namespace lowkey::coordinator {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;

namespace {

// A hung server fails the test instead of hanging it. (Asio's own blocking reads wait on, whatever
// SO_RCVTIMEO says.)
struct PatientSocket {
  static constexpr int kMilliseconds = 30'000;

  template <class Buffers>
  size_t read_some(const Buffers& buffers, boost::system::error_code& ec) {
    pollfd readable{.fd = socket.native_handle(), .events = POLLIN, .revents = 0};
    if (::poll(&readable, 1, kMilliseconds) != 0) return socket.read_some(buffers, ec);
    ec = asio::error::timed_out;
    return 0;
  }
  template <class Buffers>
  size_t read_some(const Buffers& buffers) {
    boost::system::error_code ec;
    const size_t n = read_some(buffers, ec);
    if (ec) throw boost::system::system_error(ec);
    return n;
  }
  tcp::socket& socket;
};

}  // namespace

boost::json::value ClientAnswer::json() const {
  return boost::json::parse(body);
}

std::vector<std::string> ClientAnswer::events() const {
  std::vector<std::string> result;
  for (size_t at = 0; (at = body.find("data: ", at)) != std::string::npos;) {
    const size_t end = body.find("\n\n", at);
    result.push_back(body.substr(at + 6, end - at - 6));
    at = end;
  }
  return result;
}

std::vector<boost::json::value> ClientAnswer::chunks() const {
  std::vector<boost::json::value> result;
  for (const auto& event : events())
    if (event != "[DONE]") result.push_back(boost::json::parse(event));
  return result;
}

struct HttpClient::Impl {
  asio::io_context io;
  tcp::socket socket{io};
  boost::beast::flat_buffer buffer;
};

HttpClient::HttpClient(int port) : impl_(std::make_unique<Impl>()) {
  impl_->socket.connect({asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(port)});
}
HttpClient::~HttpClient() = default;
HttpClient::HttpClient(HttpClient&&) noexcept = default;

void HttpClient::send(std::string_view bytes) {
  boost::system::error_code ignored;  // the server may have hung up already
  asio::write(impl_->socket, asio::buffer(bytes), ignored);
}

ClientAnswer HttpClient::read(bool head) {
  http::response_parser<http::string_body> parser;
  parser.body_limit(1 << 30);
  parser.skip(head);
  boost::system::error_code ec;
  PatientSocket socket{impl_->socket};
  http::read(socket, impl_->buffer, parser, ec);
  ClientAnswer answer;
  if (ec) {
    answer.body = ec.message();
    return answer;
  }
  const auto& message = parser.get();
  answer.status = message.result_int();
  answer.body = message.body();
  answer.keep_alive = message.keep_alive();
  for (const auto& field : message) {
    std::string name(field.name_string().data(), field.name_string().size());
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    answer.headers[name] = std::string(field.value().data(), field.value().size());
  }
  return answer;
}

std::string HttpClient::read_some() {
  char bytes[4096];
  boost::system::error_code ec;
  const size_t n = PatientSocket{impl_->socket}.read_some(asio::buffer(bytes), ec);
  return std::string(bytes, n);
}

void HttpClient::shutdown_send() {
  boost::system::error_code ignored;  // likewise
  impl_->socket.shutdown(tcp::socket::shutdown_send, ignored);
}

void HttpClient::reset() {
  impl_->socket.set_option(asio::socket_base::linger(true, 0));
  impl_->socket.close();
}

void HttpClient::close() {
  impl_->socket.close();
}

ClientAnswer HttpClient::get(const std::string& path, const std::string& headers) {
  send("GET " + path + " HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n");
  return read();
}

ClientAnswer HttpClient::post(const std::string& path, const std::string& body, const std::string& headers) {
  send(post_text(path, body, headers));
  return read();
}

std::string post_text(const std::string& path, const std::string& body, const std::string& headers) {
  return "POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n" + headers + "\r\n" + body;
}

}  // namespace lowkey::coordinator
