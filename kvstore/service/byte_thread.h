// The thread of a worker that touches bytes on their way to and from stores: checksums, transcoding and
// copies take milliseconds that neither a step nor the I/O thread has. Somebody waits for a restore, nobody
// for a spill: restores go first.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace lowkey::kvstore {

class ByteThread {
 public:
  using Job = std::function<void()>;
  enum class Lane { kRestore, kSpill };

  explicit ByteThread(size_t jobs_per_lane = 64);
  ~ByteThread();  // after the jobs it has taken

  // False when the lane is full: the job is dropped. Any thread.
  [[nodiscard]] bool submit(Lane lane, Job job);

 private:
  void run();

  const size_t capacity_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::array<std::deque<Job>, 2> lanes_;
  bool closed_ = false;
  std::thread thread_;
};

}  // namespace lowkey::kvstore
