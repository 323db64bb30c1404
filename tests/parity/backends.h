// The backends whose results have to agree with the plain reference. The same cases run on the CPU, on the
// host-side emulation of the CUDA sources (parity_emulated) and on a CUDA device (parity_cuda, which skips by
// name where there is none).
#pragma once

#include "tests/unit/kernels/support.h"

namespace lowkey::kernels::test {

// Those of this binary beside the CPU's. Empty, with the reason in `why`: there is no device.
std::vector<BackendCase> device_backends(std::string* why);

// The same; without a device, named cases that make none, so that what is skipped is counted.
inline std::vector<BackendCase> device_cases() {
  std::string why;
  std::vector<BackendCase> cases = device_backends(&why);
  for (DType dtype : {DType::kF32, DType::kBf16}) {
    if (why.empty()) break;
    cases.push_back({std::string("cuda_") + to_string(dtype), dtype, [] { return nullptr; }});
  }
  return cases;
}

inline std::vector<BackendCase> parity_backends() {
  std::vector<BackendCase> cases = device_cases();
  for (DType dtype : {DType::kF32, DType::kBf16}) {
    cases.push_back({std::string("cpu_") + to_string(dtype), dtype,
                     [=] { return make_cpu_backend({.dtype = dtype, .threads = 2}); }});
  }
  return cases;
}

// Why there is no device.
inline std::string no_device() {
  std::string why;
  (void)device_backends(&why);
  return why;
}

}  // namespace lowkey::kernels::test
