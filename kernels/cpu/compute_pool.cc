#include "kernels/cpu/compute_pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "base/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lowkey::kernels {
namespace {

// Operations of one layer follow each other within microseconds; a futex wake costs 5 to 50. Spinning longer
// would burn a core that other ranks on the host need.
constexpr auto kSpin = std::chrono::microseconds(20);

constexpr uint32_t kClosed = 0x7fffffff;  // a task number that no job reaches

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// True when `ready()` within the spin time.
template <class Ready>
bool spin_until(Ready ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

ComputePool::ComputePool(int threads) : parts_(std::max(threads, 1)) {
  LOWKEY_CHECK(threads >= 1, "compute pool of {} threads", threads);
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i] { work(i); });
    ::pthread_setname_np(workers_.back().native_handle(), "compute");
  }
}

ComputePool::~ComputePool() {
  stopping_.store(true);
  job_.fetch_add(1);
  job_.notify_all();
}

void ComputePool::run(int num_tasks, int num_parts, Function function, void* context) {
  if (workers_.empty() || num_tasks <= 1) {
    for (int task = 0; task < num_tasks; ++task) function(context, task, 0);
    return;
  }
  const uint32_t job = job_.load(std::memory_order_relaxed) + 1;
  // Closed while the fields change: a worker late for the last job would otherwise find a used-up claim below
  // the new number of tasks, and run a task of neither job.
  for (Part& part : parts_) part.claim.store(uint64_t{job} << 32 | kClosed);
  function_.store(function, std::memory_order_release);
  context_.store(context, std::memory_order_release);
  num_tasks_.store(num_tasks, std::memory_order_release);
  num_parts_.store(num_parts, std::memory_order_release);
  done_.store(0, std::memory_order_release);
  for (int part = 0; part < num_parts; ++part)  // publishes the fields above
    parts_[part].claim.store(uint64_t{job} << 32 |
                             static_cast<uint32_t>(first_of(part, num_tasks, num_parts)));
  job_.store(job);
  if (sleepers_.load() > 0) job_.notify_all();
  take_all(job, 0);
  wait_until_done(num_tasks);
}

// Runs tasks of `job` until none is left to claim, those of the thread's own part first.
void ComputePool::take_all(uint32_t job, int thread) {
  const int parts = static_cast<int>(parts_.size());
  int ran = 0;
  for (int i = 0; i < parts; ++i) {
    while (take_and_run(job, (thread + i) % parts, thread)) ++ran;
  }
  if (ran == 0) return;
  const int num_tasks = num_tasks_.load();  // the job's: it is open as long as these are not added
  if (done_.fetch_add(ran, std::memory_order_acq_rel) + ran == num_tasks) done_.notify_one();
}

// Claims the part's next task of `job` and runs it; false when none is left.
bool ComputePool::take_and_run(uint32_t job, int part, int thread) {
  std::atomic<uint64_t>& next = parts_[part].claim;
  uint64_t claim = next.load(std::memory_order_acquire);
  while (true) {
    const auto task = static_cast<int>(claim & 0xffffffffu);
    const Function function = function_.load(std::memory_order_acquire);
    void* context = context_.load(std::memory_order_acquire);
    const int num_tasks = num_tasks_.load(std::memory_order_acquire);
    const int num_parts = num_parts_.load(std::memory_order_acquire);
    if (claim >> 32 != job || task == static_cast<int>(kClosed) || part >= num_parts ||
        task >= first_of(part + 1, num_tasks, num_parts))
      return false;
    if (!next.compare_exchange_weak(claim, claim + 1, std::memory_order_acq_rel)) continue;
    // The claim succeeded, so the job is still open and its fields were read unchanged.
    function(context, task, thread);
    return true;
  }
}

uint32_t ComputePool::wait_for_job(uint32_t last_job) {
  if (!spin_until([&] { return job_.load(std::memory_order_acquire) != last_job; })) {
    sleepers_.fetch_add(1);
    job_.wait(last_job);
    sleepers_.fetch_sub(1);
  }
  return job_.load();
}

void ComputePool::wait_until_done(int num_tasks) {
  if (spin_until([&] { return done_.load(std::memory_order_acquire) == num_tasks; })) return;
  for (int done = done_.load(); done != num_tasks; done = done_.load()) done_.wait(done);
}

void ComputePool::work(int thread) {
  uint32_t job = 0;
  while (true) {
    job = wait_for_job(job);
    if (stopping_.load()) return;
    take_all(job, thread);
  }
}

}  // namespace lowkey::kernels
