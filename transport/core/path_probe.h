// Measures how fast a peer's pool is written and read, within a bound of bytes and time: batches that grow
// until the next one would not fit, of which the last and largest counts (the first ones pay for connections,
// page faults and a shaped link's burst). Puts go to a range behind the pool that nobody reads; gets read the
// pool itself, far apart, so that shared memory is measured and not the cache. Where this process's pages lie
// in a device's memory the same is measured once more from there: each batch with the copy that brings it
// into page-locked memory, or takes it out of there, before or behind it. Pages overlap the two.
#pragma once

#include <functional>
#include <memory>

#include "kernels/ops/staged_memory.h"
#include "transport/core/batch_plane.h"

namespace lowkey::transport {

// Bytes behind every pool that is announced to peers; shared by all that measure, its content means nothing.
inline constexpr size_t kScratchBytes = 1u << 20;

// Bytes per second; 0: not measured.
struct PathRates {
  double put = 0, get = 0;
};

struct ProbeBudget {
  size_t bytes =
      8u << 20;  // per direction and kind of memory; the last batch is more than half of what was moved
  Duration time = std::chrono::milliseconds(40);  // likewise; exceeded by half where the machine is busy
  Duration deadline = std::chrono::seconds(2);    // of one batch: beyond it nothing is known
};

// Bytes of the next batch: twice to eight times the last one (`last` bytes in `took`), or 0 when that was as
// large as the budget allows.
size_t next_probe_bytes(size_t last, Duration took, size_t bytes_left, Duration time_left);

class PathProbe : public std::enable_shared_from_this<PathProbe> {
 public:
  using Move = std::function<void(TransferKind, std::vector<Transfer>, Deadline,
                                  std::shared_ptr<void> keep_alive, std::function<void(Status)>)>;
  using Done = std::function<void(const PathRates& host, const PathRates& device)>;

  // `move` starts one batch (DataPlane::put or get); a failed one ends its direction with what is known, 0 at
  // first. `device`: of at least kScratchBytes; null: there is none to measure.
  PathProbe(uint64_t pool_bytes, const ProbeBudget& budget, std::shared_ptr<kernels::StagedMemory> device,
            Move move, Done done);
  void start() { begin(); }

 private:
  static constexpr size_t kFirstBytes = 64u << 10;

  // What is measured one after the other: puts and gets of host memory, then of the device's.
  TransferKind kind() const { return leg_ % 2 == 0 ? TransferKind::kPut : TransferKind::kGet; }
  bool staged() const { return leg_ >= 2; }
  double& rate() { return kind() == TransferKind::kPut ? rates_[leg_ / 2].put : rates_[leg_ / 2].get; }

  void begin();
  void run(size_t bytes);
  void moved(size_t bytes, Duration took, const Status& status);
  Status copy(size_t bytes) const;
  std::span<std::byte> local() const;
  std::vector<Transfer> batch(size_t bytes) const;

  const uint64_t pool_bytes_;
  const ProbeBudget budget_;
  const std::shared_ptr<kernels::StagedMemory> device_;
  const Move move_;
  const Done done_;
  const std::shared_ptr<std::vector<std::byte>> host_;
  int leg_ = 0;
  bool warm_ = false;  // the first batch is through: it alone pays for the way's set-up, and is not charged
  size_t bytes_left_ = 0;
  Duration time_left_{};
  PathRates rates_[2];  // host memory, the device's
};

}  // namespace lowkey::transport
