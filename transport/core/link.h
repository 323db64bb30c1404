// An ordered pipe of typed messages between two processes that do not know each other yet; a Session
// (session.h) makes a ControlConnection of it. Implementations: ucx/ucx_link.h, loopback/loopback_link.h.
// Thread rule: everything on the io_context's single thread. No event arrives inside a call to the link.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "transport/control_plane.h"

namespace lowkey::transport {

class Link {
 public:
  struct Events {
    std::function<void(MessageType, std::string_view body)> on_message;
    std::function<void(const Error&)> on_broken;  // at most once; no event follows
  };

  virtual ~Link() = default;
  virtual void start(Events events) = 0;
  // `sent` runs exactly once, when the link needs the body no longer (delivered, failed, or closed); it may
  // run inside send().
  virtual void send(MessageType type, std::string body, std::function<void()> sent) = 0;
  // No event follows. What is queued is still sent if that takes no longer than `linger`.
  virtual void close(Duration linger) = 0;
  virtual std::string remote() const = 0;  // for log lines

  // A longer message breaks the link before its body is copied.
  void set_receive_limit(size_t bytes) { receive_limit_ = bytes; }
  size_t receive_limit() const { return receive_limit_; }

 private:
  size_t receive_limit_ = 0;
};

// Makes links: listens at one address, connects to others.
class LinkProvider {
 public:
  virtual ~LinkProvider() = default;
  virtual std::string address() const = 0;
  virtual Result<std::shared_ptr<Link>> connect(const std::string& address) = 0;
  virtual void listen(std::function<void(std::shared_ptr<Link>)> on_inbound) = 0;
  virtual void stop_listening() = 0;
};

}  // namespace lowkey::transport
