#include "transport/ucx/worker.h"

#include "base/deadline.h"
#include "base/log.h"
#include "transport/ucx/ucx_status.h"

namespace lowkey::transport {

Result<std::shared_ptr<Worker>> Worker::create(std::shared_ptr<Context> context) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_FLAGS;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;     // made on one thread, run on another
  params.flags = UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK;  // requests to dead peers never finish
  ucp_worker_h handle = nullptr;
  if (ucs_status_t status = ucp_worker_create(context->native(), &params, &handle); status != UCS_OK) {
    return ucx_error(status, "UCX worker");
  }
  int fd = -1;
  if (ucs_status_t status = ucp_worker_get_efd(handle, &fd); status != UCS_OK) {
    ucp_worker_destroy(handle);
    return ucx_error(status, "event descriptor of the UCX worker");
  }
  return std::shared_ptr<Worker>(new Worker(std::move(context), handle, fd));
}

Worker::Worker(std::shared_ptr<Context> context, ucp_worker_h handle, int event_fd)
    : context_(std::move(context)), handle_(handle), event_fd_(event_fd) {}

Worker::~Worker() {
  if (finish_closing()) {
    ucp_worker_destroy(handle_);
    return;
  }
  spdlog::warn("{} endpoints to dead peers cannot be closed; their worker stays until the process ends",
               closing_);
  new std::shared_ptr<Context>(std::move(context_));
}

Result<std::string> Worker::address() const {
  ucp_address_t* address = nullptr;
  size_t length = 0;
  if (ucs_status_t status = ucp_worker_get_address(handle_, &address, &length); status != UCS_OK) {
    return ucx_error(status, "address of the UCX worker");
  }
  std::string bytes(reinterpret_cast<const char*>(address), length);
  ucp_worker_release_address(handle_, address);
  return bytes;
}

bool Worker::finish_closing() {
  const Deadline deadline = Deadline::in(std::chrono::seconds(1));
  while (closing_ > 0 && !deadline.passed()) {
    progress();
    run_deferred();
  }
  // A close that UCX calls complete has yet to send what it sends: the sockets are shut in later rounds.
  for (int idle = 0; idle < 64 && !deadline.passed();) idle = progress() + run_deferred() ? 0 : idle + 1;
  return closing_ == 0;
}

bool Worker::run_deferred() {
  const bool any = !deferred_.empty();
  while (!deferred_.empty()) {
    const auto task = std::move(deferred_.front());
    deferred_.pop_front();
    task();
  }
  return any;
}

}  // namespace lowkey::transport
