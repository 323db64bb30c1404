#include "worker/device/device_module.h"

#include <dlfcn.h>

#include "base/version.h"

namespace lowkey::worker {
namespace {

constexpr char kFileName[] = "liblowkey_cuda.so";

// dlerror() in one line, without the path that the message names anyway.
std::string loader_error(const std::filesystem::path& file) {
  const char* text = ::dlerror();
  std::string error = text ? text : "unknown error";
  if (error.starts_with(file.string() + ": ")) error.erase(0, file.string().size() + 2);
  return error;
}

template <class Function>
Function* symbol(void* handle, const char* name) {
  return reinterpret_cast<Function*>(::dlsym(handle, name));
}

}  // namespace

std::filesystem::path DeviceModule::default_file() {
  std::error_code none;
  return std::filesystem::read_symlink("/proc/self/exe", none).parent_path() / kFileName;
}

Result<DeviceModule> DeviceModule::load(const std::filesystem::path& file) {
  std::error_code none;
  if (!std::filesystem::exists(file, none))
    return Error{Code::kNotFound, fmt::format("{} is not there: built without CUDA", file.string()), {}};
  // Its symbols stay its own: it has copies of the base libraries that the executable has, too.
  void* handle = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr)
    return Error{Code::kUnavailable, fmt::format("{}: {}", file.string(), loader_error(file)), {}};
  auto* const version = symbol<kernels::DeviceVersionFunction>(handle, kernels::kDeviceVersionSymbol);
  auto* const library = symbol<kernels::DeviceLibraryFunction>(handle, kernels::kDeviceLibrarySymbol);
  const std::string expected = fmt::format("{}/{}", kVersion, kernels::kDeviceInterface);
  const std::string found = version ? version() : "no lowkey device library";
  if (found != expected || library == nullptr)
    return Error{Code::kUnavailable,
                 fmt::format("{}: expected version {}, found {}", file.string(), expected, found),
                 {}};
  return DeviceModule{file, library(),
                      symbol<transport::DeviceCommFunction>(handle, transport::kDeviceCommSymbol)};
}

}  // namespace lowkey::worker
