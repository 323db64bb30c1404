// A communicator that counts the seconds spent in it.
#pragma once

#include "base/trace.h"
#include "transport/host_comm.h"

namespace lowkey::worker {

class TimedComm final : public transport::HostComm {
 public:
  explicit TimedComm(HostComm& comm) : comm_(comm) {}

  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  Status all_reduce_sum(std::span<float> data, Deadline deadline) override {
    const Timer timer(&seconds_);
    const TraceSpan span("all-reduce", {"floats", int64_t(data.size())});
    return comm_.all_reduce_sum(data, deadline);
  }
  Status gather(std::span<const float> mine, std::span<float> all, int root, Deadline deadline) override {
    const Timer timer(&seconds_);
    const TraceSpan span("gather logits", {"floats", int64_t(mine.size())});
    return comm_.gather(mine, all, root, deadline);
  }
  Status barrier(Deadline deadline) override {
    const Timer timer(&seconds_);
    return comm_.barrier(deadline);
  }
  Result<std::vector<std::string>> all_gather(const std::string& mine, Deadline deadline) override {
    const Timer timer(&seconds_);
    return comm_.all_gather(mine, deadline);
  }

  double take_seconds() { return std::exchange(seconds_, 0.0); }

 private:
  struct Timer {
    explicit Timer(double* total) : total(total) {}
    ~Timer() { *total += seconds(Clock::now() - start); }
    double* total;
    TimePoint start = Clock::now();
  };

  HostComm& comm_;
  double seconds_ = 0;
};

}  // namespace lowkey::worker
