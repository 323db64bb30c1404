#include "coordinator/api/work_pool.h"

namespace lowkey::coordinator {

WorkPool::WorkPool(int threads, size_t queue) : queue_(queue) {
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this] {
      // pop() waits with a deadline; an hour without work is not the end.
      for (;;) {
        auto work = queue_.pop(Deadline::in(std::chrono::hours(1)));
        if (work) {
          (*work)();
        } else if (queue_.closed()) {
          return;
        }
      }
    });
  }
}

WorkPool::~WorkPool() {
  queue_.close();
}

}  // namespace lowkey::coordinator
