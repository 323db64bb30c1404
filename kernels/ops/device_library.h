// What the shared object for a kind of device (liblowkey_cuda.so) gives to the process that loads it. It is
// made from the same sources by the same compiler: types cross the boundary as they are, and the version
// tells whether that is so.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "kernels/ops/backend.h"
#include "kernels/ops/staged_memory.h"

namespace lowkey::kernels {

struct DeviceInfo {
  int index = 0;
  std::string name;    // "NVIDIA H200"
  std::string uuid;    // the same for every process that sees it
  std::string driver;  // versions of driver and runtime, for people
  uint64_t total_bytes = 0;
};

class DeviceLibrary {
 public:
  virtual ~DeviceLibrary() = default;
  // Those that this process sees, at least one. Error kUnavailable in one line: no driver, too old a driver,
  // no device, a device that this build has no code for.
  // Nothing is begun on any of them: a context takes hundreds of megabytes of a device, and others use it.
  virtual Result<std::vector<DeviceInfo>> devices() = 0;
  // Memory that device `index` has left. From here on this process is one of the device's users.
  virtual Result<uint64_t> free_bytes(int index) = 0;
  // `dtype`: kBf16 or kF32. Errors: kUnavailable, kResourceExhausted.
  virtual Result<std::unique_ptr<Backend>> make_backend(int index, DType dtype) = 0;
  // `bytes` of the device and as many of the host. Errors: the same.
  virtual Result<std::unique_ptr<StagedMemory>> make_staged_memory(int index, size_t bytes) = 0;
};

// Of these interfaces and everything they name; to be raised with them.
inline constexpr char kDeviceInterface[] = "4";

// Exported by the shared object: "<kVersion of base/version.h>/<kDeviceInterface>", and the library, which is
// never destroyed.
inline constexpr char kDeviceVersionSymbol[] = "lowkey_device_version";
inline constexpr char kDeviceLibrarySymbol[] = "lowkey_device_library";
using DeviceVersionFunction = const char*();
using DeviceLibraryFunction = DeviceLibrary*();

}  // namespace lowkey::kernels
