#include "worker/device/device.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"

namespace lowkey::worker {

DeviceSurvey DeviceSurvey::make(const std::filesystem::path& file) {
  DeviceSurvey survey;
  auto module = DeviceModule::load(file);
  if (!module.ok()) {
    survey.reason = module.error().message;
    return survey;
  }
  survey.module = *module;
  auto devices = module->library->devices();
  if (devices.ok()) {
    survey.devices = *std::move(devices);
  } else {
    survey.reason = devices.error().message;
  }
  return survey;
}

Device Device::cpu(kernels::DType dtype, int threads) {
  return {.backend = kernels::make_cpu_backend({.dtype = dtype, .threads = threads})};
}

Result<Device> Device::cuda(const DeviceSurvey& survey, const DeviceChoice& choice, kernels::DType dtype) {
  Device device;
  LOWKEY_CHECK(survey.module && choice.index < static_cast<int>(survey.devices.size()), "device {} of {}",
               choice.index, survey.devices.size());
  const kernels::DeviceInfo& info = survey.devices[choice.index];
  device.name = fmt::format("cuda:{} {}", info.index, info.name);
  LOWKEY_ASSIGN(backend, survey.module->library->make_backend(info.index, dtype));
  device.backend = std::move(backend);
  return device;
}

Result<std::unique_ptr<transport::DeviceComm>> make_collectives(const DeviceSurvey& survey,
                                                                const DeviceChoice& choice,
                                                                transport::HostComm& host,
                                                                kernels::Backend& backend, Deadline deadline) {
  // Every rank must come to the same answer: they tell each other what they could do.
  const bool able = !backend.host_accessible() && choice.sharers == 1 && survey.module->make_comm;
  LOWKEY_ASSIGN(answers, host.all_gather(able ? "own" : "shared", deadline));
  if (host.size() == 1 || std::ranges::any_of(answers, [](const auto& a) { return a != "own"; }))
    return std::unique_ptr<transport::DeviceComm>();
  Result<std::unique_ptr<transport::DeviceComm>> comm = Error{Code::kInternal, "no communicator", {}};
  survey.module->make_comm(host, backend, deadline, &comm);
  return comm;
}

}  // namespace lowkey::worker
