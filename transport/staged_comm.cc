#include <vector>

#include "base/check.h"
#include "transport/device_comm.h"

namespace lowkey::transport {
namespace {

size_t elements(const kernels::Tensor& x) {
  return static_cast<size_t>(x.rows) * x.cols;
}

// The tensors are in host memory.
class DirectComm final : public DeviceComm {
 public:
  explicit DirectComm(HostComm& host) : host_(host) {}

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  std::string kind() const override { return "host"; }
  bool on_device() const override { return false; }
  Status all_reduce_sum(const kernels::Tensor& x, Deadline deadline) override {
    return host_.all_reduce_sum({x.as<float>(), elements(x)}, deadline);
  }
  Status gather(const kernels::Tensor& mine, std::span<float> all, Deadline deadline) override {
    return host_.gather({mine.as<float>(), elements(mine)}, all, 0, deadline);
  }
  Status settle(Deadline) override { return {}; }

 private:
  HostComm& host_;
};

// The tensors are on a device: down, over the host, and up again.
class StagedComm final : public DeviceComm {
 public:
  StagedComm(HostComm& host, kernels::Backend& backend) : host_(host), backend_(backend) {}

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  std::string kind() const override { return "staged"; }
  // With others every sum waits for the host. Recording the pieces between them would save launches where the
  // round trips, two per layer, are what takes the time.
  bool on_device() const override { return size() == 1; }

  Status all_reduce_sum(const kernels::Tensor& x, Deadline deadline) override {
    if (size() == 1) return {};
    const std::span<float> values = download(x);
    LOWKEY_TRY(host_.all_reduce_sum(values, deadline));
    backend_.upload(std::as_bytes(values), static_cast<std::byte*>(x.data));
    return {};
  }

  Status gather(const kernels::Tensor& mine, std::span<float> all, Deadline deadline) override {
    return host_.gather(download(mine), all, 0, deadline);
  }

  Status settle(Deadline) override {
    backend_.synchronize();
    return {};
  }

 private:
  std::span<float> download(const kernels::Tensor& x) {
    if (staging_.size() < elements(x)) staging_.resize(elements(x));
    const std::span<float> values = std::span(staging_).first(elements(x));
    backend_.download(static_cast<const std::byte*>(x.data), std::as_writable_bytes(values));
    return values;
  }

  HostComm& host_;
  kernels::Backend& backend_;
  std::vector<float> staging_;
};

}  // namespace

Status DeviceComm::gather_on_device(const kernels::Tensor&, kernels::Tensor*, Deadline) {
  return Error{Code::kInternal, kind() + " collectives gather into host memory", {}};
}

std::unique_ptr<DeviceComm> make_staged_comm(HostComm& host, kernels::Backend& backend) {
  if (backend.host_accessible()) return make_staged_comm(host);
  return std::make_unique<StagedComm>(host, backend);
}

std::unique_ptr<DeviceComm> make_staged_comm(HostComm& host) {
  return std::make_unique<DirectComm>(host);
}

}  // namespace lowkey::transport
