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

  // `spills`: that may wait. Restores that wait each hold a buffer of their store's FetchQueue, and are
  // bounded by those.
  explicit ByteThread(size_t spills = 64);
  ~ByteThread();  // after the jobs it has taken

  // False when there are too many: the job is dropped. Any thread.
  [[nodiscard]] bool submit(Lane lane, Job job);

 private:
  void run();

  static constexpr size_t kMaxRestores = 4096;  // 1024 stores' batches
  const std::array<size_t, 2> capacity_;        // by lane
  std::mutex mutex_;
  std::condition_variable ready_;
  std::array<std::deque<Job>, 2> lanes_;
  bool closed_ = false;
  std::thread thread_;
};

}  // namespace lowkey::kvstore
