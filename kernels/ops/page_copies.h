// Copies of slabs between a device and host memory, beside the steps: what spills and restores need where
// the host cannot touch pages itself. They have queues of their own, so that they overlap with compute.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "base/result.h"
#include "kernels/ops/buffer.h"

namespace lowkey::kernels {

// A batch of copies under way. Any thread.
class CopyTicket {
 public:
  virtual ~CopyTicket() = default;
  virtual Status wait() = 0;  // returns when the bytes are there; an error: they are not, the device is lost
};

class PageCopies {
 public:
  struct Piece {
    std::byte* device = nullptr;
    std::byte* host = nullptr;
    size_t bytes = 0;
  };

  virtual ~PageCopies() = default;

  // Host memory that copies run at full speed to and from (page-locked). Any thread. Null: there is no more.
  virtual std::unique_ptr<Buffer> staging(size_t bytes) = 0;

  // Step thread. Device -> host: reads what the calls before this one left there. The host memory is the
  // ticket's until wait() has returned.
  virtual std::shared_ptr<CopyTicket> begin_download(std::span<const Piece> pieces) = 0;
  // Step thread. What the backend is asked from now on starts after the downloads begun so far: slabs that
  // were copied may be written again.
  virtual void fence() = 0;

  // Host -> device, after the downloads begun so far; one thread at a time, any thread. Returns when the
  // bytes are on the device, for every later call to see.
  virtual Status upload(std::span<const Piece> pieces) = 0;
};

}  // namespace lowkey::kernels
