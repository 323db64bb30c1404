// The thread that does a store's disk work: writes pages behind and reads them back, one job after the other,
// so that nothing else of the store ever waits for a disk. Outcomes are posted to the owner's thread.
//
// After a write that failed, further ones fail at once for a moment: a full or broken disk must not be asked
// for every page. A disk that hangs blocks this thread alone; its queue fills and new jobs are refused.
#pragma once

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <thread>

#include "base/bounded_queue.h"
#include "kvstore/tier/disk/segment_log.h"

namespace lowkey::kvstore {

class DiskTier {
 public:
  struct Options {
    SegmentLog::Options log;  // without on_change
    size_t max_jobs = 1024;
    Duration retry = std::chrono::seconds(1);  // after a write that failed
    bool threaded = true;                      // else work() does the jobs: for tests that must repeat
  };
  struct Job {
    DiskOutcome outcome = DiskOutcome::kFailed;
    kernels::PageHeader header;
    uint64_t bytes = 0;  // of slabs
    Duration time{};
  };
  // Calls its argument on the owner's thread, later.
  using Post = std::function<void(std::function<void()>)>;
  using Done = std::function<void(const Job&)>;
  using OnChange = std::function<void(const std::vector<DiskChange>&)>;

  // Reads what the folder holds, on the thread. `post` outlives the tier; `on_change` is posted.
  static Result<std::unique_ptr<DiskTier>> open(const Options& options, Post post, OnChange on_change);
  ~DiskTier();  // as close(), however long it takes; nothing is posted after it
  // Finishes what was queued and takes no more. False when that was not done by the deadline: the disk hangs,
  // and so would the destructor.
  bool close(Deadline deadline);

  // False when the queue is full: `done` is never called. The memory stays as it is until `done` was called.
  [[nodiscard]] bool write(const kernels::PageHeader& header, const SegmentLog::Slabs& slabs, Done done);
  [[nodiscard]] bool read(const Hash128& identity, const SegmentLog::Targets& targets, Done done);
  // Takes over folders of the host that nobody owns; once all stores of the job have opened theirs.
  void adopt();

  std::optional<DiskPage> find(const Hash128& identity) const { return log_->find(identity); }
  DiskStats stats() const { return log_->stats(); }
  bool scanned() const { return scanned_; }  // what was there at the start can be found
  void work();                               // all queued jobs, here: not threaded only

 private:
  DiskTier(const Options& options, Post post);
  void run();
  Job write_now(const kernels::PageHeader& header, const SegmentLog::Slabs& slabs);
  Job read_now(const Hash128& identity, const SegmentLog::Targets& targets);

  const Options options_;
  const Post post_;
  std::unique_ptr<SegmentLog> log_;
  std::optional<TimePoint> paused_until_;
  DiskOutcome last_failure_ = DiskOutcome::kFailed;
  std::atomic<bool> scanned_ = false;
  BoundedQueue<std::function<void()>> jobs_;
  std::promise<void> finished_;  // by the thread
  const std::shared_future<void> is_finished_ = finished_.get_future().share();
  std::thread thread_;
};

}  // namespace lowkey::kvstore
