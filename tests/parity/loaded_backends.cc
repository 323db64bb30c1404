#include <dlfcn.h>

#include <filesystem>

#include "kernels/ops/device_library.h"
#include "tests/parity/backends.h"

namespace lowkey::kernels::test {
namespace {

// liblowkey_cuda.so beside this binary.
DeviceLibrary* load(std::string* why) {
  const auto file = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "liblowkey_cuda.so";
  void* handle = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    *why = ::dlerror();
    return nullptr;
  }
  return reinterpret_cast<DeviceLibraryFunction*>(::dlsym(handle, kDeviceLibrarySymbol))();
}

}  // namespace

std::vector<BackendCase> device_backends(std::string* why) {
  static DeviceLibrary* const library = load(why);
  if (library == nullptr) return {};
  if (const auto devices = library->devices(); !devices.ok()) {
    *why = devices.error().message;
    return {};
  }
  std::vector<BackendCase> cases;
  for (DType dtype : {DType::kF32, DType::kBf16}) {
    cases.push_back({std::string("cuda_") + to_string(dtype), dtype,
                     [=] { return library->make_backend(0, dtype).value(); }});
  }
  return cases;
}

}  // namespace lowkey::kernels::test
