// Memory of a device and the page-locked memory that its pages pass through, with a queue of their own beside
// everything else that the device does: what a way through both is measured with.
#pragma once

#include <cstddef>
#include <span>

#include "base/result.h"

namespace lowkey::kernels {

// One thread at a time, any thread. Its content means nothing.
class StagedMemory {
 public:
  virtual ~StagedMemory() = default;
  virtual std::span<std::byte> host() = 0;  // page-locked
  // The first `bytes` of the device's part -> host(), and back. Complete on return; an error: the device is
  // lost. REQUIRES: bytes <= host().size().
  virtual Status download(size_t bytes) = 0;
  virtual Status upload(size_t bytes) = 0;
};

}  // namespace lowkey::kernels
