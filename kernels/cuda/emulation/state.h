// What the emulated runtime keeps: streams and their work, graphs, events. One lock for everything: a kernel
// runs on the thread that waits for it.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/cuda/emulation/cuda_runtime.h"

using EmulatedWork = std::function<void()>;

struct EmulatedGraph {
  std::vector<EmulatedWork> work;
};

struct EmulatedExecutable {
  std::shared_ptr<const std::vector<EmulatedWork>> work;
  size_t bytes = 0;
};

struct EmulatedStream {
  std::deque<EmulatedWork> work;
  uint64_t put = 0, done = 0;
  std::unique_ptr<EmulatedGraph> capture;
  bool capture_lost = false;

  void run_to(uint64_t position) {
    while (done < position) {
      EmulatedWork next = std::move(work.front());
      work.pop_front();
      next();
      ++done;
    }
  }
};

struct EmulatedEvent {
  EmulatedStream* stream = nullptr;  // null: not recorded
  uint64_t position = 0;
  // Of the record that ran last; an event may be destroyed while one is still to come.
  std::shared_ptr<double> seconds = std::make_shared<double>(0);
  bool captured = false;  // recorded in a capture last
};

namespace lowkey::kernels::cuda::emulation {

using Locked = std::lock_guard<std::recursive_mutex>;
std::recursive_mutex& lock();
std::set<EmulatedStream*>& streams();
Calls& counted();

// Whether this thread captures; then the capture is lost, and the call is to return
// cudaErrorStreamCaptureUnsupported.
bool breaks_capture();
// Whether all of it lies in one page-locked block.
bool is_page_locked(const void* memory, size_t bytes);
// Device memory that nobody has an address of. False: there is not so much.
bool take_device_bytes(size_t bytes);
void return_device_bytes(size_t bytes);
// The thread's device has a context from now on.
void begin_context();

}  // namespace lowkey::kernels::cuda::emulation
