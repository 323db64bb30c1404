#include "transport/nccl/nccl_comm.h"

#include <sched.h>

#include <cstring>

#include "base/check.h"
#include "base/one_line.h"

namespace lowkey::transport {
namespace {

constexpr auto kDestroyDeadline = std::chrono::seconds(5);

size_t elements(const kernels::Tensor& x) {
  return static_cast<size_t>(x.rows) * x.cols;
}

std::string bytes_of(const ncclUniqueId& id) {
  return {id.internal, sizeof id.internal};
}

}  // namespace

NcclComm::NcclComm(const NcclApi& api, kernels::Backend& backend, StreamIdle idle, int rank, int size)
    : api_(api), backend_(backend), idle_(std::move(idle)), rank_(rank), size_(size) {}

Result<std::unique_ptr<DeviceComm>> NcclComm::make(const NcclApi& api, HostComm& host,
                                                   kernels::Backend& backend, StreamIdle idle,
                                                   Deadline deadline) {
  std::unique_ptr<NcclComm> comm(new NcclComm(api, backend, std::move(idle), host.rank(), host.size()));
  ncclUniqueId id{};
  ncclResult_t got = ncclSuccess;
  if (comm->rank_ == 0) got = api.get_unique_id(&id);
  // The id, or nothing: then all ranks fail together.
  LOWKEY_ASSIGN(ids, host.all_gather(comm->rank_ == 0 && got == ncclSuccess ? bytes_of(id) : "", deadline));
  if (ids[0].size() != sizeof id.internal)
    return comm->fail(Code::kUnavailable, "start",
                      got == ncclSuccess ? "rank 0 has no id" : comm->explain(got));
  std::memcpy(id.internal, ids[0].data(), sizeof id.internal);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t begun = api.init_rank(&comm->comm_, comm->size_, id, comm->rank_, &config);
  LOWKEY_TRY(comm->taken(begun, "start", deadline));
  return std::unique_ptr<DeviceComm>(std::move(comm));
}

NcclComm::~NcclComm() {
  if (comm_ == nullptr) return;
  forget_graphs();
  // Finalizing waits for the peers; a communicator that cannot is aborted in taken().
  if (taken(api_.finalize(comm_), "end", Deadline::in(kDestroyDeadline))) api_.destroy(comm_);
}

std::string NcclComm::explain(ncclResult_t result) const {
  const char* detail = api_.last_error(comm_);
  std::string text = api_.error_string(result);
  if (detail != nullptr && *detail != '\0') text += fmt::format(" ({})", one_line(detail));
  return text;
}

// NCCL's ending a communicator, aborted or not, waits for the end of every graph that has its kernels, the
// one that is being captured included: it would wait for this very thread.
void NcclComm::forget_graphs() {
  kernels::StepGraphs* const graphs = backend_.step_graphs();
  if (graphs == nullptr) return;
  graphs->abandon();
  graphs->set_capacity(0);
}

// NCCL does not say which peer is at fault, other than in its text; this rank does say which one noticed.
Error NcclComm::fail(Code code, const char* what, const std::string& why) {
  if (comm_ != nullptr) {
    forget_graphs();
    api_.abort(std::exchange(comm_, nullptr));
  }
  return Error{code, fmt::format("NCCL {} on rank {} of {}: {}", what, rank_, size_, why), {}};
}

Status NcclComm::taken(ncclResult_t begun, const char* what, Deadline deadline) {
  last_ = what;
  for (ncclResult_t state = begun; state != ncclSuccess;) {
    if (state != ncclInProgress) return fail(Code::kUnavailable, what, explain(state));
    if (deadline.passed())
      return fail(Code::kDeadlineExceeded, what, "a peer did not answer by the deadline");
    sched_yield();
    if (const ncclResult_t asked = api_.async_error(comm_, &state); asked != ncclSuccess) state = asked;
  }
  return {};
}

Status NcclComm::all_reduce_sum(const kernels::Tensor& x, Deadline deadline) {
  if (comm_ == nullptr) return fail(Code::kUnavailable, "all-reduce", "after an earlier failure");
  return taken(api_.all_reduce(x.data, x.data, elements(x), ncclFloat32, ncclSum, comm_, stream()),
               "all-reduce", deadline);
}

Status NcclComm::gather(const kernels::Tensor& mine, std::span<float> all, Deadline deadline) {
  if (comm_ == nullptr) return fail(Code::kUnavailable, "gather", "after an earlier failure");
  const size_t count = elements(mine), bytes = mine.bytes();
  if (rank_ != 0) {
    LOWKEY_TRY(taken(api_.send(mine.data, count, ncclFloat32, 0, comm_, stream()), "gather", deadline));
    return settle(deadline);
  }
  LOWKEY_CHECK(all.size() >= count * size_, "gather of {} x {} into {} floats", size_, count, all.size());
  LOWKEY_TRY(receive_all(count, bytes, deadline));
  LOWKEY_TRY(settle(deadline));
  backend_.download(static_cast<const std::byte*>(mine.data), std::as_writable_bytes(all.first(count)));
  if (size_ > 1)
    backend_.download(gathered_->data() + bytes,
                      std::as_writable_bytes(all.subspan(count, count * (size_ - 1))));
  return {};
}

Status NcclComm::gather_on_device(const kernels::Tensor& mine, kernels::Tensor* all, Deadline deadline) {
  if (comm_ == nullptr) return fail(Code::kUnavailable, "gather", "after an earlier failure");
  LOWKEY_CHECK(rank_ == 0, "rank {} gathers nothing", rank_);
  LOWKEY_TRY(receive_all(elements(mine), mine.bytes(), deadline));
  *all = {gathered_->data(), mine.rows * size_, mine.cols};
  backend_.copy_columns(mine, 0, {gathered_->data(), mine.rows, mine.cols});
  return {};
}

// Rank 0: what the others send, each at its place in gathered_.
Status NcclComm::receive_all(size_t count, size_t bytes, Deadline deadline) {
  if (!gathered_ || gathered_->size() < bytes * size_) {
    LOWKEY_TRY(settle(deadline));  // allocate() waits for the stream, and the stream for the peers
    gathered_ = backend_.allocate(bytes * size_);
  }
  ncclResult_t worst = api_.group_start();
  for (int peer = 1; peer < size_; ++peer) {
    const ncclResult_t begun =
        api_.receive(gathered_->data() + peer * bytes, count, ncclFloat32, peer, comm_, stream());
    if (begun != ncclSuccess && begun != ncclInProgress) worst = begun;
  }
  const ncclResult_t ended = api_.group_end();
  return taken(worst == ncclSuccess ? ended : worst, "gather", deadline);
}

Status NcclComm::settle(Deadline deadline) {
  if (comm_ == nullptr) return fail(Code::kUnavailable, last_, "after an earlier failure");
  while (true) {
    const Result<bool> idle = idle_();
    if (!idle.ok()) return fail(Code::kUnavailable, last_, idle.error().message);
    ncclResult_t state = ncclSuccess;
    if (const ncclResult_t asked = api_.async_error(comm_, &state); asked != ncclSuccess) state = asked;
    if (state != ncclSuccess && state != ncclInProgress)
      return fail(Code::kUnavailable, last_, explain(state));
    if (*idle) return {};
    if (deadline.passed())
      return fail(Code::kDeadlineExceeded, last_,
                  "the step did not end by its deadline: a peer did not answer");
    sched_yield();
  }
}

}  // namespace lowkey::transport
