#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/emulation/fibers.h"
#include "tests/parity/backends.h"

namespace lowkey::kernels::test {

// Threads of a block run in ascending order in one case and in descending order in the other.
std::vector<BackendCase> device_backends(std::string*) {
  std::vector<BackendCase> cases;
  for (DType dtype : {DType::kF32, DType::kBf16}) {
    cases.push_back({std::string("emulated_") + to_string(dtype), dtype, [=] {
                       cuda::emulation::set_reversed(dtype == DType::kBf16);
                       return cuda::make_cuda_backend(0, dtype).value();
                     }});
  }
  return cases;
}

}  // namespace lowkey::kernels::test
