#include "transport/nccl/nccl_api.h"

#include <dlfcn.h>

namespace lowkey::transport {
namespace {

constexpr char kLibrary[] = "libnccl.so.2";

template <class Function>
void find(void* library, const char* name, Function* out, std::string* missing) {
  *out = reinterpret_cast<Function>(::dlsym(library, name));
  if (*out == nullptr) *missing = name;
}

}  // namespace

Result<NcclApi> NcclApi::load() {
  void* library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return Error{
        Code::kUnavailable, fmt::format("tensor parallelism over GPUs needs NCCL: {}", ::dlerror()), {}};
  NcclApi api;
  std::string missing;
  find(library, "ncclGetUniqueId", &api.get_unique_id, &missing);
  find(library, "ncclCommInitRankConfig", &api.init_rank, &missing);
  find(library, "ncclCommGetAsyncError", &api.async_error, &missing);
  find(library, "ncclCommFinalize", &api.finalize, &missing);
  find(library, "ncclCommDestroy", &api.destroy, &missing);
  find(library, "ncclCommAbort", &api.abort, &missing);
  find(library, "ncclAllReduce", &api.all_reduce, &missing);
  find(library, "ncclSend", &api.send, &missing);
  find(library, "ncclRecv", &api.receive, &missing);
  find(library, "ncclGroupStart", &api.group_start, &missing);
  find(library, "ncclGroupEnd", &api.group_end, &missing);
  find(library, "ncclGetErrorString", &api.error_string, &missing);
  find(library, "ncclGetLastError", &api.last_error, &missing);
  if (!missing.empty())
    return Error{Code::kUnavailable, fmt::format("{}: it has no {}", kLibrary, missing), {}};
  return api;
}

}  // namespace lowkey::transport
