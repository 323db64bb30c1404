#include "kernels/cpu/cpu_backend.h"

#include "kernels/ops/reference_backend.h"

namespace lowkey::kernels {

std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options) {
  return make_reference_backend(options.dtype);
}

}  // namespace lowkey::kernels
