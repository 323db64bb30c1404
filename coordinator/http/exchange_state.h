// The answer on its way from the handler to the connection's coroutine. Private to coordinator/http.
#pragma once

#include <boost/asio/steady_timer.hpp>

#include "coordinator/http/exchange.h"

namespace lowkey::coordinator {

class ExchangeState final : public HttpExchange {
 public:
  ExchangeState(const boost::asio::any_io_executor& executor, HttpRequest request,
                size_t stream_buffer_bytes);

  HttpRequest& request() override { return request_; }
  void respond(HttpResponse response) override;
  void start_stream(HttpResponse head) override;
  void write(std::string piece) override;
  void finish(bool close_connection) override;
  void on_disconnect(std::function<void()> callback) override;

  // ---- for the connection ----
  boost::asio::steady_timer& wake() { return wake_; }  // cancelled whenever something below changes
  bool has_head() const { return head_.has_value(); }
  const HttpResponse& head() const { return *head_; }
  bool streaming() const { return streaming_; }
  std::string take_pending();
  bool has_pending() const { return !pending_.empty(); }
  bool finished() const { return finished_; }
  bool close_after() const { return close_after_; }
  bool overflowed() const { return overflowed_; }
  boost::asio::steady_timer& overflow() { return overflow_; }  // cancelled when it does
  // The connection is over. Tells the handler when its answer was cut short; the handler's callback is
  // released.
  void end(bool complete);

 private:
  HttpRequest request_;
  size_t stream_buffer_bytes_;
  boost::asio::steady_timer wake_, overflow_;
  std::optional<HttpResponse> head_;
  bool streaming_ = false;
  std::string pending_;
  size_t pending_counted_ = 0;
  bool finished_ = false;
  bool close_after_ = false;
  bool overflowed_ = false;
  bool ended_ = false;
  std::function<void()> on_disconnect_;
};

}  // namespace lowkey::coordinator
