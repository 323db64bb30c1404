// SIGTERM or SIGINT lets a process leave an open cluster: it asks, and ends when that has been answered, or
// after its patience. Handlers run where `io` does.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>

#include "base/deadline.h"

namespace lowkey::cli {

class LeaveOnSignal {
 public:
  // From now on. `ask`, once: false where nobody can be asked; `end` follows at once then, and otherwise
  // after `patience`, should the process still be there.
  LeaveOnSignal(boost::asio::io_context& io, Duration patience, std::function<bool()> ask,
                std::function<void()> end);

  bool asked() const { return asked_; }

 private:
  void leave();

  const Duration patience_;
  const std::function<bool()> ask_;
  const std::function<void()> end_;
  boost::asio::signal_set signals_;
  boost::asio::steady_timer timer_;
  bool asked_ = false;
};

}  // namespace lowkey::cli
