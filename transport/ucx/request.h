// A nonblocking UCX operation and what to do when it ends.
#pragma once

#include <ucp/api/ucp.h>

#include <functional>
#include <memory>

#include "base/result.h"
#include "transport/ucx/ucx_status.h"
#include "transport/ucx/worker.h"

namespace lowkey::transport {

using Finished = std::function<void(ucs_status_t)>;

class Request {
 public:
  // `post` calls a ucp_*_nbx function with the parameters given to it. True: it is under way and `finished`
  // runs later, deferred by the worker; false: it succeeded at once; otherwise it failed at once.
  template <class Post>
  static Result<bool> start(const std::shared_ptr<Worker>& worker, const char* what, uint32_t flags,
                            Finished finished, Post post) {
    auto state = std::make_unique<State>(State{worker.get(), std::move(finished)});
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = flags;
    param.cb.send = on_finished;
    param.user_data = state.get();
    const ucs_status_ptr_t request = post(param);
    if (UCS_PTR_IS_PTR(request)) {
      state.release();  // on_finished takes it back
      return true;
    }
    if (UCS_PTR_IS_ERR(request)) return ucx_error(UCS_PTR_STATUS(request), what);
    return false;
  }

 private:
  struct State {
    Worker* worker;
    Finished finished;
  };
  static void on_finished(void* request, ucs_status_t status, void* user_data) {
    std::unique_ptr<State> state(static_cast<State*>(user_data));
    ucp_request_free(request);
    state->worker->defer([finished = std::move(state->finished), status] { finished(status); });
  }
};

}  // namespace lowkey::transport
