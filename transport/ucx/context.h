// Owner of a UCP context. A process has two (why: the comment at Kind).
#pragma once

#include <ucp/api/ucp.h>

#include <memory>
#include <string>

#include "base/result.h"

namespace lowkey::transport {

class Context {
 public:
  // No endpoint of UCX 1.13 has both: with error handling asked for, shared memory silently becomes TCP
  // loopback, and shared memory alone has no error handling.
  enum class Kind {
    kControl,   // tcp (or what UCX_TLS names): notices a peer's death
    kSameHost,  // shared memory: 8-9 GB/s and no CPU of the peer's, but blind to its death
  };

  // `net_device`: the only one to use for kControl, or empty for all; UCX_NET_DEVICES overrides it.
  static Result<std::shared_ptr<Context>> create(Kind kind, const std::string& net_device);
  ~Context() { ucp_cleanup(handle_); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  ucp_context_h native() const { return handle_; }
  // Whether UCX itself can read and write the memory of GPUs here: it was built for them, and found them.
  bool reaches_gpu_memory() const;

 private:
  explicit Context(ucp_context_h handle) : handle_(handle) {}
  const ucp_context_h handle_;
};

}  // namespace lowkey::transport
