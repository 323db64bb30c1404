#include "coordinator/http/incoming_request.h"

#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/read.hpp>

#include "tests/support/byte_stream.h"

namespace lowkey::coordinator {
namespace {

namespace http = boost::beast::http;
using test::ByteStream;

// Refuses /no, and whoever sends no key to /secret.
class Handler final : public HttpHandler {
 public:
  std::optional<HttpResponse> screen(HttpRequest& request) override {
    if (request.path == "/no" || (request.path == "/secret" && request.authorization != "Bearer k"))
      return error_response(404, "");
    return std::nullopt;
  }
  void handle(ExchangePtr) override {}
  HttpResponse error_response(int status, const std::string&) override { return {.status = status}; }
};

// What a connection does with a client's bytes, a line for each request.
std::vector<std::string> told(std::string_view bytes, size_t piece, const ServerOptions& options = {}) {
  ByteStream stream(bytes, piece);
  boost::beast::flat_buffer buffer;
  Handler handler;
  std::vector<std::string> lines;
  for (;;) {
    IncomingRequest incoming(options);
    boost::system::error_code failure;
    http::read_header(stream, buffer, incoming.parser(), failure);
    if (!failure) {
      if (const auto refusal = incoming.screen(handler)) {
        lines.push_back(fmt::format("refused {}{}", refusal->status, refusal->close ? ", closed" : ""));
        if (refusal->close) return lines;
        continue;
      }
      if (incoming.wants_continue()) lines.emplace_back("continue");
      if (!incoming.complete()) http::read(stream, buffer, incoming.parser(), failure);
    }
    if (failure) {
      const ReadFailure told = read_failure(failure, options);
      lines.push_back(fmt::format("failed {}", told.status));
      return lines;
    }
    const bool keep_alive = incoming.keep_alive();
    const HttpRequest request = incoming.take();
    lines.push_back(fmt::format("{} {} [{}] {}", request.method, request.path, request.query, request.body));
    if (!keep_alive) return lines;
  }
}

struct Case {
  const char* name;
  std::string bytes;
  std::vector<std::string> lines;
};

TEST(IncomingRequest, IsReadAlikeHoweverItsBytesArrive) {
  const std::string big(300, 'x');
  const Case cases[] = {
      {"pipelined",
       "GET /a?b=1?c#d HTTP/1.1\r\n\r\nHEAD /e# HTTP/1.1\r\n\r\nPOST /f HTTP/1.1\r\nContent-Length: "
       "2\r\n\r\nhi",
       {"GET /a [b=1?c] ", "GET /e [] ", "POST /f [] hi", "failed 0"}},
      {"chunked",
       "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-Continue\r\n\r\n"
       "2;x=y\r\nab\r\n1\r\nc\r\n0\r\nT: v\r\n\r\n",
       {"continue", "POST /a [] abc", "failed 0"}},
      {"no more", "GET /a HTTP/1.0\r\n\r\nGET /b HTTP/1.0\r\n\r\n", {"GET /a [] "}},
      {"refused",
       "GET /no HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
       {"refused 404", "GET /b [] ", "failed 0"}},
      {"a body nobody reads", "POST /no HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", {"refused 404, closed"}},
      {"a key", "GET /secret HTTP/1.1\r\nAuthorization: Bearer k\r\n\r\n", {"GET /secret [] ", "failed 0"}},
      {"compressed",
       "POST /a HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi",
       {"refused 415, closed"}},
      {"long header", "GET /a HTTP/1.1\r\nX: " + big + "\r\n\r\n", {"failed 431"}},
      {"long body", "POST /a HTTP/1.1\r\nContent-Length: 300\r\n\r\n" + big, {"failed 413"}},
      {"long chunk", "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n12c\r\n" + big, {"failed 413"}},
      {"no HTTP", "hello\r\n\r\n", {"failed 400"}},
      {"two lengths",
       "POST /a HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
       {"failed 400"}},
      {"cut short", "POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nhi", {"failed 0"}},
  };
  const ServerOptions options{.header_bytes = 256, .body_bytes = 256};
  for (const Case& c : cases)
    for (const size_t piece : {size_t{1}, size_t{3}, size_t{7}, size_t{64}, c.bytes.size()})
      EXPECT_EQ(told(c.bytes, piece, options), c.lines) << c.name << " in pieces of " << piece;
}

}  // namespace
}  // namespace lowkey::coordinator
