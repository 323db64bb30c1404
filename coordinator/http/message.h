// What the HTTP server and its handler exchange: plain values, no Beast types.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lowkey::coordinator {

struct HttpRequest {
  std::string method;         // "GET", "POST", ...; HEAD arrives as GET (the server leaves the body out)
  std::string path;           // without the query, as sent
  std::string query;          // behind the '?', as sent
  std::string authorization;  // value of the header; may be empty
  std::string body;           // empty while the request is only being screened

  // Bounded label for metrics; points to static storage. Set by HttpHandler::screen().
  std::string_view endpoint = "other";
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  // beyond those the server sets itself
  bool close = false;                                        // ends the connection after this response
};

}  // namespace lowkey::coordinator
