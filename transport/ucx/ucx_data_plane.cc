#include "transport/ucx/ucx_data_plane.h"

#include <algorithm>
#include <thread>

#include "base/log.h"
#include "transport/core/path_probe.h"
#include "transport/core/session.h"
#include "transport/core/session_context.h"
#include "transport/ucx/pool_handle.h"
#include "transport/ucx/request.h"

namespace lowkey::transport {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kTouchBytesPerThread = 64u << 20;  // less is not worth a thread
constexpr int kMaxEndpointsClosing = 1024;          // to dead peers; each keeps its mapping of their memory

class UcxPool final : public MemoryPool {
 public:
  struct Memory {
    std::unique_ptr<MemoryHandle> same_host;  // of the same-host context, which allocated it
    std::unique_ptr<MemoryHandle> control;    // the same in the control context; goes first
  };
  UcxPool(std::shared_ptr<Memory> memory, std::weak_ptr<UcxHub> control, std::string remote_handle)
      : memory_(std::move(memory)), control_(std::move(control)), remote_handle_(std::move(remote_handle)) {}
  ~UcxPool() override {
    const size_t bytes = memory_->same_host->bytes().size();
    if (const auto control = control_.lock()) control->retire(bytes, std::move(memory_));
  }
  std::span<std::byte> bytes() override {
    return memory_->same_host->bytes().first(memory_->same_host->bytes().size() - kScratchBytes);
  }
  std::string remote_handle() const override { return remote_handle_; }

 private:
  std::shared_ptr<Memory> memory_;
  const std::weak_ptr<UcxHub> control_;
  const std::string remote_handle_;
};

class UcxRemotePool final : public PoolView {
 public:
  UcxRemotePool(uint64_t connection_id, const PoolHandle& handle, std::unique_ptr<RemoteKey> key,
                Path presumed)
      : PoolView(connection_id, handle.size, handle.scratch),
        base_(handle.base),
        key_(std::move(key)),
        lanes_(key_->endpoint()->transfer_lanes()),
        path_(lanes_.empty() ? presumed : path_of(lanes_)) {}
  Path path() const override { return path_; }
  bool is_presumed() const override { return lanes_.empty(); }
  std::string device() const override { return device_names(lanes_); }
  bool reaches_gpu_memory() const override { return endpoint().worker()->context()->reaches_gpu_memory(); }
  const RemoteKey& key() const { return *key_; }
  Endpoint& endpoint() const { return *key_->endpoint(); }
  uint64_t at(uint64_t offset) const { return base_ + offset; }

 private:
  const uint64_t base_;
  const std::unique_ptr<RemoteKey> key_;
  const std::vector<Lane> lanes_;
  const Path path_;
};

// Untouched shared memory makes the first transfers run at page-fault speed (a tenth).
void touch(std::span<std::byte> memory) {
  const size_t wanted = memory.size() / kTouchBytesPerThread;
  const size_t threads = std::clamp<size_t>(wanted, 1, std::max(1u, std::thread::hardware_concurrency()));
  const size_t share = (memory.size() / threads + kPageBytes) / kPageBytes * kPageBytes;
  const auto touch_from = [memory, share](size_t begin) {
    const size_t end = std::min(begin + share, memory.size());
    for (size_t at = begin; at < end; at += kPageBytes) {
      *const_cast<volatile std::byte*>(memory.data() + at) = std::byte{0};
    }
  };
  std::vector<std::jthread> helpers;
  for (size_t i = 1; i < threads; ++i) helpers.emplace_back(touch_from, i * share);
  touch_from(0);
}

std::string to_hex(const std::string& bytes) {
  std::string hex;
  for (unsigned char c : bytes) hex += fmt::format("{:02x}", c);
  return hex;
}

Result<std::string> from_hex(const std::string& hex) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  const Error malformed{Code::kInvalidArgument, "data address is malformed"};
  if (hex.empty() || hex.size() % 2) return malformed;
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    const int high = digit(hex[i]), low = digit(hex[i + 1]);
    if (high < 0 || low < 0) return malformed;
    bytes += static_cast<char>(high * 16 + low);
  }
  return bytes;
}

}  // namespace

Result<std::unique_ptr<UcxDataPlane>> UcxDataPlane::create(std::shared_ptr<SessionContext> context,
                                                           std::shared_ptr<UcxHub> control) {
  LOWKEY_ASSIGN(ucp, Context::create(Context::Kind::kSameHost, ""));
  LOWKEY_ASSIGN(worker, Worker::create(std::move(ucp)));
  LOWKEY_ASSIGN(address, worker->address());
  return std::unique_ptr<UcxDataPlane>(
      new UcxDataPlane(std::move(context), std::move(control), std::move(worker), to_hex(address)));
}

UcxDataPlane::UcxDataPlane(std::shared_ptr<SessionContext> context, std::shared_ptr<UcxHub> control,
                           std::shared_ptr<Worker> same_host, std::string address)
    : BatchPlane(std::move(context)),
      control_(std::move(control)),
      same_host_(std::move(same_host)),
      same_host_loop_(std::make_shared<ProgressLoop>(this->context().io, same_host_)),
      address_(std::move(address)) {
  this->context().gauge = [worker = same_host_, control = control_.get()](TransportStats& stats) {
    stats.endpoints_closing_now = static_cast<uint32_t>(worker->closing());
    stats.quarantined_bytes_now += control->retired_bytes();
  };
  same_host_loop_->kick();
}

UcxDataPlane::~UcxDataPlane() {
  context().gauge = nullptr;
}

Result<std::shared_ptr<MemoryPool>> UcxDataPlane::allocate(size_t bytes) {
  if (bytes == 0) return Error{Code::kInvalidArgument, "a pool of 0 bytes"};
  LOWKEY_ASSIGN(memory, MemoryHandle::allocate(same_host_->context(), bytes + kScratchBytes));
  touch(memory->bytes());
  LOWKEY_ASSIGN(registered, MemoryHandle::add(control_->worker()->context(), memory->bytes()));
  PoolHandle handle;
  handle.base = reinterpret_cast<uint64_t>(memory->bytes().data());
  handle.size = bytes;
  handle.scratch = kScratchBytes;
  LOWKEY_ASSIGN(same_host_key, memory->packed_key());
  LOWKEY_ASSIGN(control_key, registered->packed_key());
  handle.same_host_key = std::move(same_host_key);
  handle.control_key = std::move(control_key);
  auto both = std::make_shared<UcxPool::Memory>(std::move(memory), std::move(registered));
  return std::shared_ptr<MemoryPool>(std::make_shared<UcxPool>(std::move(both), control_, pack(handle)));
}

Result<std::unique_ptr<RemoteKey>> UcxDataPlane::same_host_key(uint64_t connection_id,
                                                               const std::string& data_address,
                                                               const std::string& packed) {
  auto& endpoint = endpoints_[connection_id];
  if (!endpoint) {
    if (same_host_->closing() >= kMaxEndpointsClosing) {
      return Error{Code::kResourceExhausted,
                   fmt::format("{} endpoints to dead peers", same_host_->closing())};
    }
    LOWKEY_ASSIGN(address, from_hex(data_address));
    LOWKEY_ASSIGN(opened, Endpoint::open(same_host_, address));
    endpoint = std::move(opened);
    same_host_loop_->kick();
  }
  return RemoteKey::unpack(endpoint, packed);
}

Result<std::shared_ptr<RemotePool>> UcxDataPlane::open(const ConnectionPtr& peer,
                                                       const std::string& data_address,
                                                       const std::string& remote_handle) {
  LOWKEY_ASSIGN(session, session_of(peer));
  LOWKEY_ASSIGN(handle, unpack_pool_handle(remote_handle));
  const auto made = [&](std::unique_ptr<RemoteKey> key, Path presumed) {
    auto pool = std::make_shared<UcxRemotePool>(session->id(), handle, std::move(key), presumed);
    attest(session, pool);
    return std::shared_ptr<RemotePool>(std::move(pool));
  };
  const std::string& host = context().options.self.host;
  if (!host.empty() && host == session->peer().host) {
    auto key = same_host_key(session->id(), data_address, handle.same_host_key);
    if (key.ok()) return made(std::move(key).value(), Path::kShm);
    spdlog::warn("no shared memory with {} {}, using the network: {}", to_string(session->peer().role),
                 session->peer().world_rank, key.error().message);
  }
  const auto endpoint = static_cast<UcxLink&>(*session->link()).endpoint();
  LOWKEY_ASSIGN(key, RemoteKey::unpack(endpoint, handle.control_key));
  return made(std::move(key), Path::kTcp);
}

ProgressLoop& UcxDataPlane::loop_of(const Endpoint& endpoint) {
  return endpoint.worker() == same_host_ ? *same_host_loop_ : control_->loop();
}

Result<bool> UcxDataPlane::start(PoolView& view, TransferKind kind, const Transfer& transfer,
                                 Completion completed) {
  auto& pool = static_cast<UcxRemotePool&>(view);
  if (transfer.local.empty()) return false;
  const char* const what = kind == TransferKind::kPut ? "put" : "get";
  auto started = Request::start(
      pool.endpoint().worker(), what, 0,
      [what, completed = std::move(completed)](ucs_status_t status) {
        completed(status == UCS_OK ? Status() : Status(ucx_error(status, what)));
      },
      [&](ucp_request_param_t& param) {
        const ucp_ep_h endpoint = pool.endpoint().native();
        const ucp_rkey_h key = pool.key().native();
        const uint64_t remote = pool.at(transfer.remote_offset);
        const auto local = transfer.local;
        return kind == TransferKind::kPut
                   ? ucp_put_nbx(endpoint, local.data(), local.size(), remote, key, &param)
                   : ucp_get_nbx(endpoint, local.data(), local.size(), remote, key, &param);
      });
  loop_of(pool.endpoint()).kick();
  return started;
}

Result<bool> UcxDataPlane::flush(PoolView& view, Completion completed) {
  auto& pool = static_cast<UcxRemotePool&>(view);
  auto started = Request::start(
      pool.endpoint().worker(), "flush", 0,
      [completed = std::move(completed)](ucs_status_t status) {
        completed(status == UCS_OK ? Status() : Status(ucx_error(status, "flush")));
      },
      [&](ucp_request_param_t& param) { return ucp_ep_flush_nbx(pool.endpoint().native(), &param); });
  loop_of(pool.endpoint()).kick();
  return started;
}

void UcxDataPlane::connection_down(uint64_t connection_id) {
  if (endpoints_.erase(connection_id) == 0) return;
  same_host_loop_->kick();
}

}  // namespace lowkey::transport
