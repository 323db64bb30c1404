// PageCopies with streams of their own: one for what leaves the device, one for what comes.
#pragma once

#include <mutex>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/landing_ring.h"
#include "kernels/cuda/stream.h"
#include "kernels/ops/page_copies.h"

namespace lowkey::kernels::cuda {

class CudaPageCopies final : public PageCopies {
 public:
  // `compute`: the backend's stream; it outlives this.
  static Result<std::unique_ptr<CudaPageCopies>> create(int device, cudaStream_t compute);

  std::unique_ptr<Buffer> staging(size_t bytes) override;
  std::shared_ptr<CopyTicket> begin_download(std::span<const Piece> pieces) override;
  void fence() override;
  Status upload(std::span<const Piece> pieces) override;

 private:
  CudaPageCopies(int device, cudaStream_t compute, Stream out, LandingRing landing, Event marked, Event left)
      : device_(device),
        compute_(compute),
        out_(std::move(out)),
        landing_(std::move(landing)),
        marked_(std::move(marked)),
        left_(std::move(left)) {}

  const int device_;
  const cudaStream_t compute_;
  const Stream out_;
  LandingRing landing_;
  std::mutex mutex_;  // of the events: recorded on the step thread, waited for on others, too
  Event marked_;      // on compute_: what a download reads is there
  Event left_;        // on out_: the downloads begun so far have been copied
};

}  // namespace lowkey::kernels::cuda
