#include "transport/core/path_probe.h"

#include <algorithm>
#include <utility>

namespace lowkey::transport {
namespace {

constexpr size_t kPieceBytes = 64u << 10;  // as fast per byte as larger ones, on shared memory and on TCP
constexpr size_t kGrowth = 8;

}  // namespace

size_t next_probe_bytes(size_t last, Duration took, size_t bytes_left, Duration time_left) {
  if (took >= time_left) return 0;
  const double rate = static_cast<double>(last) / std::max(seconds(took), 1e-9);
  const double affordable = std::max(2.0 * static_cast<double>(last), 0.8 * rate * seconds(time_left));
  const double most = static_cast<double>(std::min(bytes_left, last * kGrowth));
  const size_t next = static_cast<size_t>(std::min(affordable, most)) / kPieceBytes * kPieceBytes;
  return next > last ? next : 0;
}

PathProbe::PathProbe(uint64_t pool_bytes, const ProbeBudget& budget,
                     std::shared_ptr<kernels::StagedMemory> device, Move move, Done done)
    : pool_bytes_(pool_bytes),
      budget_(budget),
      device_(std::move(device)),
      move_(std::move(move)),
      done_(std::move(done)),
      host_(std::make_shared<std::vector<std::byte>>(kScratchBytes)) {}

void PathProbe::begin() {
  warm_ = false;
  bytes_left_ = budget_.bytes;
  time_left_ = budget_.time;
  run(kFirstBytes);
}

void PathProbe::run(size_t bytes) {
  const TimePoint start = Clock::now();
  const bool put = kind() == TransferKind::kPut;
  if (const Status copied = put ? copy(bytes) : Status(); !copied.ok())
    return moved(bytes, Clock::now() - start, copied);
  const std::shared_ptr<void> memory = staged() ? std::shared_ptr<void>(device_) : host_;
  move_(kind(), batch(bytes), Deadline::in(budget_.deadline), memory,
        [self = shared_from_this(), put, bytes, start](const Status& status) {
          const Status copied = status.ok() && !put ? self->copy(bytes) : status;
          self->moved(bytes, Clock::now() - start, copied);
        });
}

void PathProbe::moved(size_t bytes, Duration took, const Status& status) {
  size_t next = 0;
  if (status.ok()) {
    rate() = static_cast<double>(bytes) / std::max(seconds(took), 1e-9);
    if (!std::exchange(warm_, true)) return run(kFirstBytes);
    bytes_left_ -= std::min(bytes, bytes_left_);
    time_left_ -= took;
    next = next_probe_bytes(bytes, took, bytes_left_, time_left_);
  }
  if (next > 0) return run(next);
  if (++leg_ == (device_ ? 4 : 2)) return done_(rates_[0], rates_[1]);
  begin();
}

// Between the device and its page-locked memory, as a batch of this leg needs it.
Status PathProbe::copy(size_t bytes) const {
  for (size_t done = 0; staged() && done < bytes;) {
    const size_t part = std::min(local().size(), bytes - done);
    LOWKEY_TRY(kind() == TransferKind::kPut ? device_->download(part) : device_->upload(part));
    done += part;
  }
  return {};
}

std::span<std::byte> PathProbe::local() const {
  return staged() ? device_->host().first(kScratchBytes) : std::span(*host_);
}

// Local memory is written and read over and over: it is in the cache, as freshly encoded pages are.
std::vector<Transfer> PathProbe::batch(size_t bytes) const {
  const size_t piece = std::min<uint64_t>(kPieceBytes, pool_bytes_);
  const uint64_t remote_pieces = pool_bytes_ / piece, scratch_pieces = kScratchBytes / piece;
  const size_t count = std::max<size_t>(1, bytes / piece);
  const uint64_t stride = std::max<uint64_t>(1, remote_pieces / count);
  std::vector<Transfer> transfers;
  transfers.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const auto from = local().subspan(i % scratch_pieces * piece, piece);
    const uint64_t remote = kind() == TransferKind::kPut ? pool_bytes_ + i % scratch_pieces * piece
                                                         : i * stride % remote_pieces * piece;
    transfers.push_back({from, remote});
  }
  return transfers;
}

}  // namespace lowkey::transport
