// One request and its answer, as the handler sees it. Answer with respond(), or with start_stream(), write()*
// and finish() (or abort()). After the client is gone every call is a no-op. I/O thread only.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/http/message.h"

namespace lowkey::coordinator {

class HttpExchange {
 public:
  virtual ~HttpExchange() = default;

  virtual HttpRequest& request() = 0;
  virtual void respond(HttpResponse response) = 0;
  virtual void start_stream(HttpResponse head) = 0;  // `body` is ignored
  // Queues a piece of the stream. A client that lets more than ServerOptions::stream_buffer_bytes pile up, in
  // more than 128 pieces, is cut off: counted, and told to the handler through on_disconnect.
  virtual void write(std::string piece) = 0;
  virtual void finish(bool close_connection = false) = 0;
  // At most once, never from inside one of the calls above: the client closed, was cut off, or could not be
  // written to, before the answer was complete. A half-closed connection counts as closed.
  virtual void on_disconnect(std::function<void()> callback) = 0;
};
using ExchangePtr = std::shared_ptr<HttpExchange>;

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // Called with the header alone, before a body is accepted: sets request.endpoint, and may refuse at once
  // (unknown route, wrong method, no key).
  virtual std::optional<HttpResponse> screen(HttpRequest& request) = 0;
  virtual void handle(ExchangePtr exchange) = 0;
  // The body for an error that the server itself finds: malformed HTTP, a limit passed, too many connections.
  virtual HttpResponse error_response(int status, const std::string& message) = 0;
};

}  // namespace lowkey::coordinator
