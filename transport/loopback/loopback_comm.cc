#include "transport/loopback/loopback_comm.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

namespace lowkey::transport {
namespace {

// Every collective is one exchange: all deposit bytes, all wait, all read everybody's, all leave.
class Exchange {
 public:
  explicit Exchange(int size) : slots_(size) {}

  int size() const { return static_cast<int>(slots_.size()); }

  // Everybody's deposits by rank; whoever misses the deadline breaks the exchange for good.
  Result<std::vector<std::string>> run(int rank, std::string mine, Deadline deadline) {
    std::unique_lock lock(mutex_);
    // The previous exchange must have been left by all before its slots are written again.
    if (!wait(lock, deadline, [&] { return leaving_ == 0; })) return expired("to begin");
    slots_[rank] = std::move(mine);
    const uint64_t round = round_;
    if (++arrived_ == size()) {
      arrived_ = 0;
      leaving_ = size();
      ++round_;
      changed_.notify_all();
    }
    if (!wait(lock, deadline, [&] { return round_ != round; })) return expired("for the other ranks");
    std::vector<std::string> all = slots_;
    if (--leaving_ == 0) changed_.notify_all();
    return all;
  }

 private:
  template <class Condition>
  bool wait(std::unique_lock<std::mutex>& lock, Deadline deadline, Condition condition) {
    const bool held = changed_.wait_until(lock, deadline.at(), [&] { return broken_ || condition(); });
    return held && !broken_;
  }
  Error expired(const char* what) {
    broken_ = true;
    changed_.notify_all();
    return {Code::kDeadlineExceeded, fmt::format("collective waited {} past its deadline", what)};
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> slots_;
  int arrived_ = 0, leaving_ = 0;
  uint64_t round_ = 0;
  bool broken_ = false;
};

std::string to_string(std::span<const float> data) {
  return {reinterpret_cast<const char*>(data.data()), data.size_bytes()};
}

class LoopbackComm final : public HostComm {
 public:
  LoopbackComm(std::shared_ptr<Exchange> exchange, int rank) : exchange_(std::move(exchange)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return exchange_->size(); }

  Status all_reduce_sum(std::span<float> data, Deadline deadline) override {
    LOWKEY_ASSIGN(all, exchange_->run(rank_, to_string(data), deadline));
    LOWKEY_TRY(same_sizes(all, data.size_bytes()));
    std::fill(data.begin(), data.end(), 0.0f);
    // In rank order, so that every rank gets the same bits.
    for (const std::string& bytes : all) {
      const auto* values = reinterpret_cast<const float*>(bytes.data());
      for (size_t i = 0; i < data.size(); ++i) data[i] += values[i];
    }
    return {};
  }

  Status gather(std::span<const float> mine, std::span<float> gathered, int root,
                Deadline deadline) override {
    LOWKEY_ASSIGN(all, exchange_->run(rank_, to_string(mine), deadline));
    LOWKEY_TRY(same_sizes(all, mine.size_bytes()));
    if (rank_ != root) return {};
    LOWKEY_CHECK(gathered.size() == mine.size() * all.size(), "gather into {} floats", gathered.size());
    auto* out = reinterpret_cast<char*>(gathered.data());
    for (const std::string& bytes : all) out = std::copy(bytes.begin(), bytes.end(), out);
    return {};
  }

  Status barrier(Deadline deadline) override {
    LOWKEY_ASSIGN(all, exchange_->run(rank_, "", deadline));
    return {};
  }

  Result<std::vector<std::string>> all_gather(const std::string& mine, Deadline deadline) override {
    return exchange_->run(rank_, mine, deadline);
  }

 private:
  static Status same_sizes(const std::vector<std::string>& all, size_t bytes) {
    for (const std::string& other : all) {
      if (other.size() == bytes) continue;
      return Error{Code::kInternal, fmt::format("ranks bring {} and {} bytes", bytes, other.size())};
    }
    return {};
  }

  const std::shared_ptr<Exchange> exchange_;
  const int rank_;
};

}  // namespace

std::vector<std::unique_ptr<HostComm>> make_loopback_comms(int size) {
  auto exchange = std::make_shared<Exchange>(size);
  std::vector<std::unique_ptr<HostComm>> comms;
  for (int rank = 0; rank < size; ++rank) comms.push_back(std::make_unique<LoopbackComm>(exchange, rank));
  return comms;
}

}  // namespace lowkey::transport
