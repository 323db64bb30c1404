#include "coordinator/http/exchange_state.h"

#include <algorithm>

#include "base/check.h"

namespace lowkey::coordinator {

namespace {

// That a stream's buffer holds, whatever their size: twice as many as a reply has choices.
constexpr size_t kLeastPieces = 128;

}  // namespace

ExchangeState::ExchangeState(const boost::asio::any_io_executor& executor, HttpRequest request,
                             size_t stream_buffer_bytes)
    : request_(std::move(request)),
      stream_buffer_bytes_(stream_buffer_bytes),
      wake_(executor),
      overflow_(executor) {
  wake_.expires_at(boost::asio::steady_timer::time_point::max());
  overflow_.expires_at(boost::asio::steady_timer::time_point::max());
}

void ExchangeState::respond(HttpResponse response) {
  if (ended_) return;
  LOWKEY_CHECK(!head_, "{} {} answered twice", request_.method, request_.path);
  head_ = std::move(response);
  finished_ = true;
  wake_.cancel();
}

void ExchangeState::start_stream(HttpResponse head) {
  if (ended_) return;
  LOWKEY_CHECK(!head_, "{} {} answered twice", request_.method, request_.path);
  head_ = std::move(head);
  streaming_ = true;
  wake_.cancel();
}

void ExchangeState::write(std::string piece) {
  if (ended_ || overflowed_) return;
  LOWKEY_CHECK(streaming_ && !finished_, "{} {}: write outside a stream", request_.method, request_.path);
  // An echoed prompt with its log-probabilities may be longer than the buffer, for each choice of a reply.
  const size_t counted = std::min(piece.size(), stream_buffer_bytes_ / kLeastPieces);
  if (pending_counted_ + counted > stream_buffer_bytes_) {
    overflowed_ = true;  // the connection cuts the client off
    overflow_.cancel();
  } else if (pending_.empty()) {
    pending_ = std::move(piece);
  } else {
    pending_ += piece;
  }
  pending_counted_ += counted;
  wake_.cancel();
}

void ExchangeState::finish(bool close_connection) {
  if (ended_) return;
  LOWKEY_CHECK(streaming_ && !finished_, "{} {}: finish outside a stream", request_.method, request_.path);
  finished_ = true;
  close_after_ = close_connection;
  wake_.cancel();
}

void ExchangeState::on_disconnect(std::function<void()> callback) {
  if (!ended_) on_disconnect_ = std::move(callback);
}

std::string ExchangeState::take_pending() {
  pending_counted_ = 0;
  return std::exchange(pending_, {});
}

void ExchangeState::end(bool complete) {
  ended_ = true;
  auto callback = std::exchange(on_disconnect_, nullptr);
  if (!complete && callback) callback();
}

}  // namespace lowkey::coordinator
