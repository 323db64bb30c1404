#include "kernels/cuda/page_copies.h"

namespace lowkey::kernels::cuda {
namespace {

class Ticket final : public CopyTicket {
 public:
  Ticket(int device, Event done) : device_(device), done_(std::move(done)) {}
  Status wait() override {
    LOWKEY_CUDA_TRY(cudaSetDevice(device_));
    return done_.synchronize();
  }

 private:
  const int device_;
  Event done_;
};

// A ticket of copies that could not be begun.
class FailedTicket final : public CopyTicket {
 public:
  explicit FailedTicket(Error error) : error_(std::move(error)) {}
  Status wait() override { return error_; }

 private:
  const Error error_;
};

}  // namespace

Result<std::unique_ptr<CudaPageCopies>> CudaPageCopies::create(int device, cudaStream_t compute) {
  LOWKEY_ASSIGN(out, Stream::create());
  LOWKEY_ASSIGN(landing, LandingRing::create());
  LOWKEY_ASSIGN(marked, Event::create());
  LOWKEY_ASSIGN(left, Event::create());
  return std::unique_ptr<CudaPageCopies>(new CudaPageCopies(
      device, compute, std::move(out), std::move(landing), std::move(marked), std::move(left)));
}

std::unique_ptr<Buffer> CudaPageCopies::staging(size_t bytes) {
  if (!LOWKEY_CUDA_STATUS(cudaSetDevice(device_)).ok()) return nullptr;
  auto buffer = PinnedBuffer::create(bytes);
  if (!buffer.ok()) return nullptr;
  return std::make_unique<PinnedBuffer>(std::move(buffer).value());
}

std::shared_ptr<CopyTicket> CudaPageCopies::begin_download(std::span<const Piece> pieces) {
  auto done = Event::create();
  if (!done.ok()) return std::make_shared<FailedTicket>(done.error());
  const std::lock_guard lock(mutex_);
  marked_.record(compute_);
  out_.wait(marked_.get());
  for (const Piece& piece : pieces)
    LOWKEY_CUDA_CHECK(
        cudaMemcpyAsync(piece.host, piece.device, piece.bytes, cudaMemcpyDeviceToHost, out_.get()));
  done.value().record(out_.get());
  left_.record(out_.get());
  return std::make_shared<Ticket>(device_, std::move(done).value());
}

void CudaPageCopies::fence() {
  const std::lock_guard lock(mutex_);
  LOWKEY_CUDA_CHECK(cudaStreamWaitEvent(compute_, left_.get(), 0));
}

Status CudaPageCopies::upload(std::span<const Piece> pieces) {
  LOWKEY_CUDA_TRY(cudaSetDevice(device_));
  {
    const std::lock_guard lock(mutex_);
    landing_.wait(left_.get());
  }
  return landing_.upload(pieces);
}

}  // namespace lowkey::kernels::cuda
