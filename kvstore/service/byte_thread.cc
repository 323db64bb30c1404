#include "kvstore/service/byte_thread.h"

#include <pthread.h>

#include <utility>

namespace lowkey::kvstore {

ByteThread::ByteThread(size_t spills) : capacity_{kMaxRestores, spills}, thread_([this] { run(); }) {
  pthread_setname_np(thread_.native_handle(), "bytes");
}

ByteThread::~ByteThread() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  ready_.notify_one();
  thread_.join();
}

bool ByteThread::submit(Lane lane, Job job) {
  {
    std::lock_guard lock(mutex_);
    auto& jobs = lanes_[static_cast<size_t>(lane)];
    if (closed_ || jobs.size() >= capacity_[static_cast<size_t>(lane)]) return false;
    jobs.push_back(std::move(job));
  }
  ready_.notify_one();
  return true;
}

void ByteThread::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ready_.wait(lock, [&] { return closed_ || !lanes_[0].empty() || !lanes_[1].empty(); });
    auto& jobs = lanes_[0].empty() ? lanes_[1] : lanes_[0];
    if (jobs.empty()) return;
    Job job = std::move(jobs.front());
    jobs.pop_front();
    lock.unlock();
    job();
    job = nullptr;  // what it holds comes back before the next one starts
    lock.lock();
  }
}

}  // namespace lowkey::kvstore
