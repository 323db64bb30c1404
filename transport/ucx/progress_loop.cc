#include "transport/ucx/progress_loop.h"

#include <boost/asio/post.hpp>

#include "base/log.h"
#include "transport/ucx/ucx_status.h"

namespace lowkey::transport {
namespace {

// Rounds of progress before timers and the other worker get their turn.
constexpr int kRoundsPerTurn = 64;
// Calls such as a close leave steps to later rounds of progress, some of which report that nothing moved and
// announce no event; so a kicked loop wants several quiet rounds in a row.
constexpr int kQuietRoundsAfterKick = 4;

}  // namespace

ProgressLoop::ProgressLoop(boost::asio::io_context& io, std::shared_ptr<Worker> worker)
    : io_(io), worker_(std::move(worker)), descriptor_(io, worker_->event_fd()) {}

ProgressLoop::~ProgressLoop() {
  descriptor_.release();
}  // the descriptor is UCX's

void ProgressLoop::kick() {
  if (posted_) return;
  posted_ = true;
  boost::asio::post(io_, [weak = weak_from_this()] {
    auto self = weak.lock();
    if (!self) return;
    self->posted_ = false;
    self->turn(kQuietRoundsAfterKick);
  });
}

// Progress until nothing moves, then arm. UCX answers BUSY when something came in between, and deferred tasks
// may have caused new work: both mean another round. Only after a successful arm does the descriptor tell.
void ProgressLoop::turn(int quiet_rounds) {
  const auto self = shared_from_this();
  int quiet = 0;
  for (int round = 0; round < kRoundsPerTurn; ++round) {
    const unsigned moved = worker_->progress();
    const bool ran = worker_->run_deferred();
    quiet = moved > 0 || ran ? 0 : quiet + 1;
    if (quiet < quiet_rounds) continue;
    const ucs_status_t status = worker_->arm();
    if (status == UCS_OK) return wait();
    LOWKEY_CHECK(status == UCS_ERR_BUSY, "ucp_worker_arm: {}", ucs_status_string(status));
  }
  kick();
}

void ProgressLoop::wait() {
  if (waiting_) return;
  waiting_ = true;
  descriptor_.async_wait(boost::asio::posix::descriptor_base::wait_read,
                         [weak = weak_from_this()](boost::system::error_code ec) {
                           auto self = weak.lock();
                           if (!self) return;
                           self->waiting_ = false;
                           if (!ec) self->turn(1);
                         });
}

}  // namespace lowkey::transport
