// What a client sends over its connection, from the first byte to the parsed body: every request is answered
// with JSON or read within its limits, and alike however the bytes arrive. The first byte chooses the size of
// the pieces.
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/json/parse.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/generation_request.h"
#include "coordinator/api/percent.h"
#include "coordinator/api/route_table.h"
#include "coordinator/http/incoming_request.h"
#include "tests/support/byte_stream.h"

namespace lowkey::coordinator {
namespace {

namespace http = boost::beast::http;

const ServerOptions kOptions{.header_bytes = 384, .body_bytes = 384};

void check_json(std::string_view text) {
  boost::json::error_code failure;
  (void)boost::json::parse(text, failure);
  LOWKEY_CHECK(!failure, "{}: {}", failure.message(), text);
}

class Handler final : public HttpHandler {
 public:
  std::optional<HttpResponse> screen(HttpRequest& request) override {
    return coordinator::screen(request, keys_);
  }
  void handle(ExchangePtr) override {}
  HttpResponse error_response(int status, const std::string& message) override {
    return error_http(api_error(status, message));
  }

 private:
  const ApiKeys keys_{"k"};
};

template <class T>
int status_of(const Result<T>& parsed) {
  if (parsed.ok()) return 200;
  const HttpResponse response = error_http(api_error(parsed.error()));
  check_json(response.body);
  return response.status;
}

// The status that the body alone decides.
int answer(const HttpRequest& request) {
  LOWKEY_CHECK(request.path.find_first_of("?#") == std::string::npos, "{}", request.path);
  LOWKEY_CHECK(request.query.find('#') == std::string::npos, "{}", request.query);
  LOWKEY_CHECK(request.body.size() <= kOptions.body_bytes, "{}", request.body.size());
  LOWKEY_CHECK(percent_decoded(request.query).size() <= request.query.size());
  const Route* route = find_route(request.path);
  LOWKEY_CHECK(route != nullptr && route->method == request.method && route->endpoint == request.endpoint);
  LOWKEY_CHECK(route->open || request.authorization == "Bearer k", "{}", request.authorization);
  switch (route->action) {
    case Action::kCompletions:
      return status_of(parse_generation(Endpoint::kCompletions, request.body, {}));
    case Action::kChat:
      return status_of(parse_generation(Endpoint::kChat, request.body, {}));
    case Action::kTokenize:
      return status_of(parse_tokenize(request.body));
    case Action::kDetokenize:
      return status_of(parse_detokenize(request.body));
    default:
      return 200;
  }
}

// As a connection: a line for each request that was read whole.
std::vector<std::string> converse(std::string_view bytes, size_t piece) {
  test::ByteStream stream(bytes, piece);
  boost::beast::flat_buffer buffer;
  Handler handler;
  std::vector<std::string> lines;
  for (bool keep_alive = true; keep_alive;) {
    IncomingRequest incoming(kOptions);
    boost::system::error_code failure;
    http::read_header(stream, buffer, incoming.parser(), failure);
    if (!failure) {
      if (const auto refusal = incoming.screen(handler)) {
        LOWKEY_CHECK(refusal->close || (incoming.keep_alive() && incoming.complete()));
        if (!refusal->body.empty()) check_json(refusal->body);
        lines.push_back(fmt::format("refused {} {}", refusal->status, refusal->body));
        keep_alive = !refusal->close;
        continue;
      }
      if (!incoming.complete()) http::read(stream, buffer, incoming.parser(), failure);
    }
    if (failure) {
      const ReadFailure told = read_failure(failure, kOptions);
      LOWKEY_CHECK(told.status == 0 || (told.status >= 400 && told.status < 500 && !told.message.empty()));
      break;
    }
    keep_alive = incoming.keep_alive();
    const HttpRequest request = incoming.take();
    lines.push_back(fmt::format("{} {} {} {}", request.path, request.query, request.body, answer(request)));
  }
  return lines;
}

}  // namespace
}  // namespace lowkey::coordinator

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowkey::coordinator;
  if (size < 2) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  auto whole = converse(bytes, bytes.size()), pieces = converse(bytes, 1 + data[0] % 64);
  // Limits and mistakes are seen when bytes come, so that one of them may have ended before the other.
  const size_t both = std::min(whole.size(), pieces.size());
  whole.resize(both), pieces.resize(both);
  LOWKEY_CHECK(whole == pieces, "whole: {}; in pieces: {}", fmt::join(whole, " | "),
               fmt::join(pieces, " | "));
  return 0;
}
