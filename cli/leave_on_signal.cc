#include "cli/leave_on_signal.h"

#include <csignal>
#include <utility>

namespace lowkey::cli {

LeaveOnSignal::LeaveOnSignal(boost::asio::io_context& io, Duration patience, std::function<bool()> ask,
                             std::function<void()> end)
    : patience_(patience),
      ask_(std::move(ask)),
      end_(std::move(end)),
      signals_(io, SIGTERM, SIGINT),
      timer_(io) {
  signals_.async_wait([this](boost::system::error_code failure, int) {
    if (!failure) leave();
  });
}

void LeaveOnSignal::leave() {
  asked_ = true;
  if (!ask_()) return end_();
  timer_.expires_after(patience_);
  timer_.async_wait([this](boost::system::error_code failure) {
    if (!failure) end_();
  });
}

}  // namespace lowkey::cli
