// The device that these tests run on: that of the shared object in TEST_DEVICE_LIBRARY (the emulation has
// one, too), or of the one beside the executable.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/cpu/cpu_backend.h"
#include "worker/device/device.h"

namespace lowkey::testing {

inline const worker::DeviceSurvey& survey() {
  static const worker::DeviceSurvey found = [] {
    const char* file = std::getenv("TEST_DEVICE_LIBRARY");
    return file ? worker::DeviceSurvey::make(file) : worker::DeviceSurvey::make();
  }();
  return found;
}
inline bool emulated() {
  return std::getenv("TEST_DEVICE_LIBRARY") != nullptr;
}

inline std::unique_ptr<kernels::Backend> device_backend(kernels::DType dtype) {
  auto device = worker::Device::cuda(survey(), {}, dtype);
  LOWKEY_CHECK(device.ok(), "{}", device.error().message);
  return std::move(device->backend);
}
inline std::unique_ptr<kernels::Backend> cpu_backend(kernels::DType dtype) {
  return kernels::make_cpu_backend({.dtype = dtype, .threads = 1});
}

class OnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (survey().devices.empty()) GTEST_SKIP() << survey().reason;
  }
};

}  // namespace lowkey::testing
