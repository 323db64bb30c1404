// Owner of a UCP worker: progress, arming, and the rule that nothing of ours runs inside UCX.
//
// UCX's callbacks (arrivals, completions, errors) only defer() what is to be done; run_deferred() does it
// after ucp_worker_progress has returned, where every UCX call is allowed again. Thread rule: one thread at a
// time.
#pragma once

#include <ucp/api/ucp.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "transport/ucx/context.h"

namespace lowkey::transport {

class Worker {
 public:
  static Result<std::shared_ptr<Worker>> create(std::shared_ptr<Context> context);
  // Waits a second at most for closing endpoints. A worker with endpoints that cannot close (see endpoint.h)
  // is left to the end of the process: destroying it would pull their memory from under UCX.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  ucp_worker_h native() const { return handle_; }
  const std::shared_ptr<Context>& context() const { return context_; }
  int event_fd() const { return event_fd_; }
  Result<std::string> address() const;  // binary

  unsigned progress() { return ucp_worker_progress(handle_); }
  ucs_status_t arm() { return ucp_worker_arm(handle_); }
  void defer(std::function<void()> task) { deferred_.push_back(std::move(task)); }
  bool run_deferred();  // true if there was anything

  // Closings under way; the worker waits for them.
  void closing_begins() { ++closing_; }
  void closing_ends() {
    if (--closing_ == 0 && on_all_closed_) defer(on_all_closed_);
  }
  void on_all_closed(std::function<void()> task) { on_all_closed_ = std::move(task); }  // deferred, each time
  int closing() const { return closing_; }
  // Progress until all closings are through, a second at most; false if some are not.
  bool finish_closing();

 private:
  Worker(std::shared_ptr<Context> context, ucp_worker_h handle, int event_fd);

  std::shared_ptr<Context> context_;
  const ucp_worker_h handle_;
  const int event_fd_;
  std::deque<std::function<void()>> deferred_;
  int closing_ = 0;
  std::function<void()> on_all_closed_;
};

}  // namespace lowkey::transport
