// The device that a worker computes on.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "worker/device/device_module.h"

namespace lowkey::worker {

// What one process finds, before anything is decided: its module and the devices it sees, or why there are
// none.
struct DeviceSurvey {
  std::optional<DeviceModule> module;
  std::vector<kernels::DeviceInfo> devices;  // empty: see `reason`
  std::string reason;

  static DeviceSurvey make(const std::filesystem::path& file = DeviceModule::default_file());
};

// Which one, where devices were found.
struct DeviceChoice {
  int index = 0;    // in the survey
  int sharers = 1;  // workers of this host on that device, this one included
};

// A backend, and what people should know of it.
struct Device {
  std::string name = "cpu";  // or "cuda:0 NVIDIA H200"
  std::unique_ptr<kernels::Backend> backend;

  static Device cpu(kernels::DType dtype, int threads);
  // Errors: kUnavailable, kResourceExhausted. REQUIRES: a survey with that device.
  static Result<Device> cuda(const DeviceSurvey& survey, const DeviceChoice& choice, kernels::DType dtype);
};

// The devices' own collectives (NCCL) for the ranks of `host`, a replica; null: through the host, because
// ranks share a device or compute on none, or there is one rank. Collective. Errors as DeviceCommFunction.
Result<std::unique_ptr<transport::DeviceComm>> make_collectives(const DeviceSurvey& survey,
                                                                const DeviceChoice& choice,
                                                                transport::HostComm& host,
                                                                kernels::Backend& backend, Deadline deadline);

}  // namespace lowkey::worker
