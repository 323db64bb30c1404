// Fork-join over a fixed set of threads. One job at a time; the calling thread works too and takes every task
// that no worker has picked up, so a worker that the kernel schedules late costs nothing: on an
// oversubscribed machine the pool is never slower than one thread by more than the tasks in flight.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace lowkey::kernels {

class ComputePool {
 public:
  // `threads` >= 1, the calling thread included; 1 starts none.
  explicit ComputePool(int threads);
  ~ComputePool();
  ComputePool(const ComputePool&) = delete;
  ComputePool& operator=(const ComputePool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) once for every task in 0 .. num_tasks-1, with 0 <= thread < threads(); no two
  // calls at a time have the same thread. Returns when all are done. Tasks start in ascending order. Not
  // reentrant.
  template <class Body>
  void parallel_for(int num_tasks, Body&& body) {
    start(num_tasks, 1, body);
  }

  // The same, but every thread begins with a part of its own, consecutive tasks in ascending order, and takes
  // what is left of the others' when it is through: for tasks whose data lie one after the other.
  template <class Body>
  void parallel_parts(int num_tasks, Body&& body) {
    start(num_tasks, threads(), body);
  }
  // The end of the part that a task of parallel_parts() belongs to.
  int end_of_part(int task, int num_tasks) const {
    int part = 0;
    while (first_of(part + 1, num_tasks, threads()) <= task) ++part;
    return first_of(part + 1, num_tasks, threads());
  }

 private:
  using Function = void (*)(void* context, int task, int thread);
  // job number << 32 | next task: claimed by compare-and-swap
  struct alignas(64) Part {
    std::atomic<uint64_t> claim{0};
  };

  static int first_of(int part, int num_tasks, int num_parts) {
    return static_cast<int>(int64_t{num_tasks} * part / num_parts);
  }
  template <class Body>
  void start(int num_tasks, int num_parts, Body& body) {
    run(
        num_tasks, num_parts,
        [](void* context, int task, int thread) { (*static_cast<Body*>(context))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
  void run(int num_tasks, int num_parts, Function function, void* context);
  void work(int thread);
  void take_all(uint32_t job, int thread);
  bool take_and_run(uint32_t job, int part, int thread);
  uint32_t wait_for_job(uint32_t last_job);
  void wait_until_done(int num_tasks);

  // The current job. Written by the caller only while no task of a job is open; a worker that reads them late
  // notices when it fails to claim a task of the job it meant.
  std::atomic<Function> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> num_tasks_{0};
  std::atomic<int> num_parts_{0};

  std::vector<Part> parts_;  // [threads]; a job has the first num_parts_ of them, the others stay closed
  alignas(64) std::atomic<int> done_{0};      // finished tasks of the current job
  alignas(64) std::atomic<uint32_t> job_{0};  // futex of idle workers
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::jthread> workers_;
};

}  // namespace lowkey::kernels
