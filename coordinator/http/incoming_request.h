// One request as its bytes come in: what it may hold, what the handler gets of it, and what a client is told
// whose bytes cannot be read. It knows no socket: a connection reads into it. Private to coordinator/http.
#pragma once

#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <string>

#include "coordinator/http/server.h"

namespace lowkey::coordinator {

class IncomingRequest {
 public:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;

  explicit IncomingRequest(const ServerOptions& options);

  Parser& parser() { return parser_; }  // reads the header first, then the body

  // ---- once the header has been read ----
  const boost::beast::http::request_header<>& header() const { return parser_.get(); }
  bool keep_alive() const { return parser_.get().keep_alive(); }
  bool complete() const { return parser_.is_done(); }
  bool wants_continue() const;  // the client sends the body when it is told to
  // Asks the handler; a refusal is the answer. One whose body is still to come ends the connection: whoever
  // has no key cannot make us hold 8 MiB.
  std::optional<HttpResponse> screen(HttpHandler& handler);
  const HttpRequest& request() const { return request_; }  // screened, without its body

  // REQUIRES: complete(). With the body.
  HttpRequest take();

 private:
  Parser parser_;
  HttpRequest request_;
};

// What a client is told whose request could not be read.
struct ReadFailure {
  int status = 0;  // 0: nothing to answer, just close
  std::string message;
};
ReadFailure read_failure(const boost::system::error_code& ec, const ServerOptions& options);

}  // namespace lowkey::coordinator
