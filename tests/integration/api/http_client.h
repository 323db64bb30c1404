// A blocking HTTP client on a plain socket: raw bytes where a test needs them, Beast's parser for answers.
#pragma once

#include <boost/json.hpp>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lowkey::coordinator {

struct ClientAnswer {
  int status = 0;                              // 0: the connection ended before an answer
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  bool keep_alive = false;

  boost::json::value json() const;                 // of the body
  std::vector<std::string> events() const;         // "data:" of each server-sent event
  std::vector<boost::json::value> chunks() const;  // those that are JSON
};

class HttpClient {
 public:
  explicit HttpClient(int port);
  ~HttpClient();
  HttpClient(HttpClient&&) noexcept;

  void send(std::string_view bytes);
  ClientAnswer read(bool head = false);  // the next answer
  std::string read_some();               // empty: closed by the server
  void shutdown_send();
  void reset();  // closes with RST
  void close();

  ClientAnswer get(const std::string& path, const std::string& headers = "");
  ClientAnswer post(const std::string& path, const std::string& body, const std::string& headers = "");

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::string post_text(const std::string& path, const std::string& body, const std::string& headers = "");

}  // namespace lowkey::coordinator
