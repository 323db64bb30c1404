// A few threads for work that is too long for the I/O thread (parsing and tokenizing long prompts), behind a
// bounded queue.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"

namespace lowkey::coordinator {

class WorkPool {
 public:
  WorkPool(int threads, size_t queue);
  ~WorkPool();  // finishes what is queued

  // False when the queue is full: the caller answers. Work must not throw.
  [[nodiscard]] bool try_run(std::function<void()> work) { return queue_.try_push(std::move(work)); }

 private:
  BoundedQueue<std::function<void()>> queue_;
  std::vector<std::jthread> threads_;
};

}  // namespace lowkey::coordinator
