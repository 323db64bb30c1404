#include "transport/loopback/loopback_data_plane.h"

#include <boost/asio/post.hpp>
#include <charconv>
#include <cstring>

#include "transport/core/session.h"
#include "transport/core/session_context.h"
#include "transport/loopback/loopback_network.h"

namespace lowkey::transport {
namespace {

constexpr size_t kPageBytes = 4096;

class LoopbackRemotePool final : public PoolView {
 public:
  LoopbackRemotePool(uint64_t connection_id, std::shared_ptr<LoopbackPool> pool)
      : PoolView(connection_id, pool->bytes().size(), 0), pool_(std::move(pool)) {}
  Path path() const override { return Path::kLoopback; }
  std::string device() const override { return "memory"; }
  std::byte* at(uint64_t offset) { return pool_->bytes().data() + offset; }

 private:
  const std::shared_ptr<LoopbackPool> pool_;
};

}  // namespace

LoopbackPool::LoopbackPool(size_t bytes)
    : size_(bytes),
      memory_(static_cast<std::byte*>(
          std::aligned_alloc(kPageBytes, (bytes + kPageBytes - 1) / kPageBytes * kPageBytes))) {
  if (memory_) std::memset(memory_.get(), 0, bytes);
}

LoopbackDataPlane::LoopbackDataPlane(std::shared_ptr<SessionContext> context,
                                     std::shared_ptr<LoopbackNetwork> network)
    : BatchPlane(std::move(context)), network_(std::move(network)) {}

Result<std::shared_ptr<MemoryPool>> LoopbackDataPlane::allocate(size_t bytes) {
  if (bytes == 0) return Error{Code::kInvalidArgument, "a pool of 0 bytes"};
  auto pool = std::make_shared<LoopbackPool>(bytes);
  if (pool->bytes().data() == nullptr) {
    return Error{Code::kResourceExhausted, fmt::format("no memory for a pool of {} bytes", bytes)};
  }
  pool->set_id(network_->add_pool(pool));
  return std::shared_ptr<MemoryPool>(std::move(pool));
}

Result<std::shared_ptr<RemotePool>> LoopbackDataPlane::open(const ConnectionPtr& peer, const std::string&,
                                                            const std::string& remote_handle) {
  LOWKEY_ASSIGN(session, session_of(peer));
  uint64_t id = 0;
  std::from_chars(remote_handle.data(), remote_handle.data() + remote_handle.size(), id);
  auto pool = network_->find_pool(id);
  if (!pool) return Error{Code::kInvalidArgument, "the pool's handle is malformed or of no pool"};
  auto view = std::make_shared<LoopbackRemotePool>(session->id(), std::move(pool));
  attest(session, view);
  return std::shared_ptr<RemotePool>(std::move(view));
}

Result<bool> LoopbackDataPlane::start(PoolView& view, TransferKind kind, const Transfer& transfer,
                                      Completion completed) {
  auto& pool = static_cast<LoopbackRemotePool&>(view);
  const TransferFault fault = network_->next_transfer();
  if (fault == TransferFault::kNeverCompletes) {
    never_.emplace_back(view.connection_id(), std::move(completed));
    return true;
  }
  if (fault == TransferFault::kFail) {
    boost::asio::post(context().io, [completed = std::move(completed)] {
      completed(Error{Code::kUnavailable, "injected failure"});
    });
    return true;
  }
  std::byte* const remote = pool.at(transfer.remote_offset);
  std::byte* const from = kind == TransferKind::kPut ? transfer.local.data() : remote;
  std::byte* const to = kind == TransferKind::kPut ? remote : transfer.local.data();
  if (!transfer.local.empty()) std::memcpy(to, from, transfer.local.size());
  if (fault == TransferFault::kFlipBit && !transfer.local.empty())
    to[transfer.local.size() / 2] ^= std::byte{0x10};
  return false;
}

Result<bool> LoopbackDataPlane::flush(PoolView&, Completion) {
  return false;
}

// A broken connection completes what hung on it, as a reliable transport does.
void LoopbackDataPlane::connection_down(uint64_t connection_id) {
  std::vector<Completion> released;
  std::erase_if(never_, [&](auto& stalled) {
    if (stalled.first != connection_id) return false;
    released.push_back(std::move(stalled.second));
    return true;
  });
  for (const auto& completed : released) completed(Error{Code::kCancelled, "connection is down"});
}

}  // namespace lowkey::transport
