// DeviceComm over NCCL: one process and one device per rank, on the backend's stream. The communicator never
// blocks: what it has begun is polled, together with its asynchronous errors, until the deadline. A peer that
// is gone or stopped shows there; then the communicator is aborted, which also ends the kernels that wait for
// the peer, and every later call fails.
#pragma once

#include <functional>
#include <memory>

#include "transport/device_comm.h"
#include "transport/nccl/nccl_api.h"

namespace lowkey::transport {

class NcclComm final : public DeviceComm {
 public:
  // Whether everything on the backend's stream is done; an error of the device.
  using StreamIdle = std::function<Result<bool>()>;

  // Collective over `host`, which shares the communicator's id and is not used afterwards. `backend` outlives
  // the communicator. Errors: kUnavailable, kDeadlineExceeded.
  static Result<std::unique_ptr<DeviceComm>> make(const NcclApi& api, HostComm& host,
                                                  kernels::Backend& backend, StreamIdle idle,
                                                  Deadline deadline);
  ~NcclComm() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string kind() const override { return "nccl"; }
  bool on_device() const override { return true; }
  Status all_reduce_sum(const kernels::Tensor& x, Deadline deadline) override;
  Status gather(const kernels::Tensor& mine, std::span<float> all, Deadline deadline) override;
  bool gathers_on_device() const override { return true; }
  Status gather_on_device(const kernels::Tensor& mine, kernels::Tensor* all, Deadline deadline) override;
  Status settle(Deadline deadline) override;

 private:
  NcclComm(const NcclApi& api, kernels::Backend& backend, StreamIdle idle, int rank, int size);

  // Waits until NCCL has taken in what `begun` says of a call.
  Status taken(ncclResult_t begun, const char* what, Deadline deadline);
  Status receive_all(size_t count, size_t bytes, Deadline deadline);
  Error fail(Code code, const char* what, const std::string& why);
  void forget_graphs();
  std::string explain(ncclResult_t result) const;
  cudaStream_t stream() const { return static_cast<cudaStream_t>(backend_.native_stream()); }

  const NcclApi api_;
  kernels::Backend& backend_;
  const StreamIdle idle_;
  const int rank_, size_;
  ncclComm_t comm_ = nullptr;                  // null: aborted, or never there
  const char* last_ = "start";                 // the collective that was begun last
  std::unique_ptr<kernels::Buffer> gathered_;  // rank 0: by rank, its own where it asked for that; grown
};

}  // namespace lowkey::transport
