#include "coordinator/http/incoming_request.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/error.hpp>

namespace lowkey::coordinator {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;

HttpRequest make_request(const http::request_header<>& header) {
  HttpRequest request;
  const auto method = header.method_string();
  request.method = header.method() == http::verb::head ? "GET" : std::string(method.data(), method.size());
  const auto target = header.target();
  const std::string_view whole(target.data(), target.size());
  const std::string_view asked = whole.substr(0, whole.find('#'));
  request.path = std::string(asked.substr(0, asked.find('?')));
  request.query = std::string(asked.substr(std::min(request.path.size() + 1, asked.size())));
  const auto authorization = header[http::field::authorization];
  request.authorization = std::string(authorization.data(), authorization.size());
  return request;
}

}  // namespace

IncomingRequest::IncomingRequest(const ServerOptions& options) {
  parser_.header_limit(static_cast<uint32_t>(options.header_bytes));
  parser_.body_limit(options.body_bytes);
}

bool IncomingRequest::wants_continue() const {
  return beast::iequals(header()[http::field::expect], "100-continue");
}

std::optional<HttpResponse> IncomingRequest::screen(HttpHandler& handler) {
  request_ = make_request(header());
  std::optional<HttpResponse> refusal = handler.screen(request_);
  if (!refusal && header().count(http::field::content_encoding) > 0)
    refusal = handler.error_response(415, "compressed request bodies are not supported");
  if (refusal && !(keep_alive() && complete())) refusal->close = true;
  return refusal;
}

HttpRequest IncomingRequest::take() {
  request_.body = std::move(parser_.get().body());
  return std::move(request_);
}

ReadFailure read_failure(const boost::system::error_code& ec, const ServerOptions& options) {
  if (ec == http::error::header_limit)
    return {431, fmt::format("request header is longer than {} bytes", options.header_bytes)};
  if (ec == http::error::body_limit)
    return {413, fmt::format("request body is longer than {} bytes", options.body_bytes)};
  if (ec == http::error::end_of_stream || ec == http::error::partial_message) return {};
  static const auto& http_category = make_error_code(http::error::bad_method).category();
  if (ec.category() == http_category) return {400, fmt::format("malformed HTTP request: {}", ec.message())};
  return {};
}

}  // namespace lowkey::coordinator
