// liblowkey_cuda.so, if it can be had: the CUDA backend and NCCL, which the executable does not link.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "base/result.h"
#include "kernels/ops/device_library.h"
#include "transport/device_comm.h"

namespace lowkey::worker {

// Loaded once and never unloaded: what it made may be anywhere. Copies are views.
struct DeviceModule {
  std::filesystem::path file;
  kernels::DeviceLibrary* library = nullptr;
  transport::DeviceCommFunction* make_comm = nullptr;  // null: it has no collectives of its own

  // Loads `file`. Errors, one line each: kNotFound (there is no such file), kUnavailable (it needs a library
  // that is not there, is of another version, or is no such object).
  static Result<DeviceModule> load(const std::filesystem::path& file);
  // Where the build and the packages put it: beside this executable.
  static std::filesystem::path default_file();
};

}  // namespace lowkey::worker
