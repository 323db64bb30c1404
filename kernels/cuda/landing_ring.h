// Host memory -> slabs that lie anywhere on a device, at the rate of long copies, whatever the slabs' size.
//
// A copy costs the host 0.5 to 2 us to issue, alone or in a batch, and the link about 1.5 us to change over;
// 64 KB take it 1.2 us, and below some 28 KB a batch of copies falls to a tenth of the link's rate
// (vllm-project/vllm#42212, on an H100). Restored slabs come one behind the other in one buffer, so they
// cross in one copy of up to 2 MiB, into a stage on the device, and a kernel takes them from there while
// the next stage fills. That reads and writes each byte once more, in memory with 80 times the link's
// bandwidth. Runs of 1 MiB and more are long enough for a copy of their own and do without.
//
// Counted for 1 GiB in slabs of 64 KB over 55 GB/s, floor 19.5 ms: 16,384 copies, 16 to 33 ms to issue; a
// batch of them, 8 ms and 21 to 28 ms measured there; 512 copies and 512 launches, 4 ms beside 20.3 ms.
#pragma once

#include <span>
#include <vector>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/landing_kernels.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops/page_copies.h"

namespace lowkey::kernels::cuda {

// One thread at a time, which has chosen the device.
class LandingRing {
 public:
  static Result<LandingRing> create();

  // What is uploaded from now on crosses after `event` as it was last recorded.
  void wait(cudaEvent_t event) const { in_.wait(event); }
  // Returns when all bytes are in place, or, with an error, when nothing reads the host's any more. Pieces do
  // not overlap.
  Status upload(std::span<const PageCopies::Piece> pieces);

 private:
  static constexpr size_t kStageBytes = size_t{2} << 20;  // 38 us of a link of 55 GB/s
  static constexpr int kStages = 4;  // so much may wait for a multiprocessor while the link goes on
  static constexpr size_t kStraightBytes = size_t{1} << 20;

  struct Stage {
    Event arrived, landed;
  };
  LandingRing(Stream in, Stream land, DeviceBuffer memory, std::vector<Stage> stages)
      : in_(std::move(in)), land_(std::move(land)), memory_(std::move(memory)), stages_(std::move(stages)) {}

  Status begin(const PageCopies::Piece& run);
  Status add(PageCopies::Piece run);
  Status copy_waiting();
  Status close_stage();
  std::byte* stage() const { return memory_.as<std::byte>() + turn_ * kStageBytes; }

  Stream in_;    // copies from the host
  Stream land_;  // kernels, ahead of those of the steps
  DeviceBuffer memory_;
  std::vector<Stage> stages_;
  size_t turn_ = 0;  // the stage that is being filled
  size_t filled_ = 0;
  Landings landings_{};
  PageCopies::Piece waiting_;  // of the stage, one run on the host: its copy is not begun
};

}  // namespace lowkey::kernels::cuda
