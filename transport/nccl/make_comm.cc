// What the shared object exports: transport/device_comm.h.
#include <cuda_runtime_api.h>

#include <cstdlib>

#include "transport/nccl/nccl_comm.h"

namespace lowkey::transport {
namespace {

Result<std::unique_ptr<DeviceComm>> make(HostComm& host, kernels::Backend& backend, Deadline deadline) {
  // By itself NCCL registers the buffers of captured collectives with all peers, while they are captured.
  // Ranks may capture at different steps (each forgets graphs with its own memory), and would wait for each
  // other.
  ::setenv("NCCL_GRAPH_REGISTER", "0", 0);
  const auto api = NcclApi::load();
  // A rank that lacks NCCL must not leave the others waiting.
  LOWKEY_ASSIGN(able, host.all_gather(api.ok() ? "yes" : "", deadline));
  if (!api.ok()) return api.error();
  for (size_t rank = 0; rank < able.size(); ++rank) {
    if (able[rank].empty())
      return Error{Code::kUnavailable, fmt::format("rank {} of {} has no NCCL", rank, able.size()), {}};
  }
  const auto stream = static_cast<cudaStream_t>(backend.native_stream());
  const auto idle = [stream]() -> Result<bool> {
    const cudaError_t state = cudaStreamQuery(stream);
    if (state == cudaSuccess || state == cudaErrorNotReady) return state == cudaSuccess;
    return Error{Code::kUnavailable, fmt::format("CUDA: {}", cudaGetErrorString(state)), {}};
  };
  return NcclComm::make(*api, host, backend, idle, deadline);
}

}  // namespace
}  // namespace lowkey::transport

extern "C" __attribute__((visibility("default"))) void lowkey_make_device_comm(
    lowkey::transport::HostComm& host, lowkey::kernels::Backend& backend, lowkey::Deadline deadline,
    lowkey::Result<std::unique_ptr<lowkey::transport::DeviceComm>>* out) {
  *out = lowkey::transport::make(host, backend, deadline);
}
