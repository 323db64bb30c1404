// Collectives between the ranks of one replica on what their models compute: tensors in a backend's memory.
// Ordered like the backend's operations, so a call may return before it is done; an error or a peer that does
// not answer shows then in settle(). After an error the communicator is broken: report and _exit.
// Thread rule: only the step thread calls these.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/deadline.h"
#include "base/result.h"
#include "kernels/ops/backend.h"
#include "transport/host_comm.h"

namespace lowkey::transport {

class DeviceComm {
 public:
  virtual ~DeviceComm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string kind() const = 0;  // "host", "staged", "nccl": for people and metrics
  // Whether all_reduce_sum() only puts work on the backend's queue, so that it can be part of a recorded
  // step.
  virtual bool on_device() const = 0;
  // In place, over an f32 tensor of the same shape on every rank.
  virtual Status all_reduce_sum(const kernels::Tensor& x, Deadline deadline) = 0;
  // Rank 0 receives size() times the elements of `mine` in `all`, host memory, by rank, and has them on
  // return; `all` is ignored elsewhere. Same shape on every rank.
  virtual Status gather(const kernels::Tensor& mine, std::span<float> all, Deadline deadline) = 0;
  // Whether there is gather_on_device(): rank 0 receives the same in its backend's memory, as `all`
  // [size() * rows, cols], there until the next call. The other ranks call gather().
  virtual bool gathers_on_device() const { return false; }
  virtual Status gather_on_device(const kernels::Tensor& mine, kernels::Tensor* all, Deadline deadline);
  // Returns when everything that was asked of the backend before, collectives included, is complete. An
  // error names the collective or the peer.
  virtual Status settle(Deadline deadline) = 0;
};

// Through host memory and `host`: at once where the backend's memory is the host's, by way of a copy where it
// is not; then several ranks may share one device. Both outlive it.
std::unique_ptr<DeviceComm> make_staged_comm(HostComm& host, kernels::Backend& backend);
// For models without a backend: tensors in host memory.
std::unique_ptr<DeviceComm> make_staged_comm(HostComm& host);

// Exported by a device's shared object (kernels/ops/device_library.h) where it has collectives of its own:
// communicator for the ranks of `host`, each with a device of its own. Collective. Errors: kUnavailable,
// kDeadlineExceeded.
inline constexpr char kDeviceCommSymbol[] = "lowkey_make_device_comm";
using DeviceCommFunction = void(HostComm& host, kernels::Backend& backend, Deadline deadline,
                                Result<std::unique_ptr<DeviceComm>>* out);

}  // namespace lowkey::transport
