#include "kernels/cuda/cuda_error.h"

#include <spdlog/fmt/fmt.h>

#include "base/check.h"

namespace lowkey::kernels::cuda {
namespace {

std::string describe(cudaError_t error, const char* call, const char* file, int line) {
  return fmt::format("{}:{}: {}: {} ({})", file, line, call, cudaGetErrorString(error),
                     cudaGetErrorName(error));
}

}  // namespace

Status cuda_status(cudaError_t error, const char* call, const char* file, int line) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();  // what is not sticky is not to be found by the next call
  switch (error) {
    case cudaErrorNoDevice:
      return Error{Code::kUnavailable, "CUDA: no device: the driver sees none"};
    case cudaErrorInsufficientDriver: {
      int driver = 0, runtime = 0;
      (void)cudaDriverGetVersion(&driver);
      (void)cudaRuntimeGetVersion(&runtime);
      if (driver == 0) return Error{Code::kUnavailable, "CUDA: no driver is installed"};
      return Error{Code::kUnavailable,
                   fmt::format("CUDA: driver for {}.{}: expected {}.{} or later", driver / 1000,
                               driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10)};
    }
    case cudaErrorMemoryAllocation:
      return Error{Code::kResourceExhausted, describe(error, call, file, line)};
    default:
      return Error{Code::kInternal, describe(error, call, file, line)};
  }
}

std::string memory_report(size_t asked_bytes) {
  constexpr double kGiB = 1 << 30;
  size_t free = 0, total = 0;
  (void)cudaMemGetInfo(&free, &total);
  return fmt::format("{:.3f} GiB asked for, {:.3f} of {:.3f} GiB free", asked_bytes / kGiB, free / kGiB,
                     total / kGiB);
}

void cuda_failed(cudaError_t error, const char* call, const char* file, int line) {
  check_failed(file, line, call, describe(error, call, file, line));
}

}  // namespace lowkey::kernels::cuda
