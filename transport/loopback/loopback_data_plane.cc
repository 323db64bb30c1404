#include "transport/loopback/loopback_data_plane.h"

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <charconv>
#include <cstring>

#include "transport/core/session.h"
#include "transport/core/session_context.h"
#include "transport/loopback/loopback_link.h"
#include "transport/loopback/loopback_network.h"

namespace lowkey::transport {
namespace {

constexpr size_t kPageBytes = 4096;

class LoopbackRemotePool final : public PoolView {
 public:
  LoopbackRemotePool(uint64_t connection_id, std::shared_ptr<LoopbackPool> pool, const LoopbackLink& link)
      : PoolView(connection_id, pool->bytes().size(), 0),
        pool_(std::move(pool)),
        local_(link.local()),
        remote_(link.remote()) {}
  Path path() const override { return Path::kLoopback; }
  std::string device() const override { return "memory"; }
  std::byte* at(uint64_t offset) { return pool_->bytes().data() + offset; }
  const std::shared_ptr<LoopbackPool>& shared() const { return pool_; }
  const std::string& local() const { return local_; }  // addresses of the two processes
  const std::string& remote() const { return remote_; }

 private:
  const std::shared_ptr<LoopbackPool> pool_;
  const std::string local_, remote_;
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
    : BatchPlane(std::move(context)),
      network_(std::move(network)),
      self_(std::make_shared<LoopbackDataPlane*>(this)) {}

LoopbackDataPlane::~LoopbackDataPlane() {
  *self_ = nullptr;
}

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
  auto view = std::make_shared<LoopbackRemotePool>(session->id(), std::move(pool),
                                                   static_cast<const LoopbackLink&>(*session->link()));
  attest(session, view);
  return std::shared_ptr<RemotePool>(std::move(view));
}

Result<bool> LoopbackDataPlane::start(PoolView& view, TransferKind kind, const Transfer& transfer,
                                      Completion completed) {
  auto& pool = static_cast<LoopbackRemotePool&>(view);
  const TransferFault fault = network_->next_transfer();
  if (fault == TransferFault::kFail) {
    boost::asio::post(context().io, [completed = std::move(completed)] {
      completed(Error{Code::kUnavailable, "injected failure"});
    });
    return true;
  }
  std::byte* const remote = pool.at(transfer.remote_offset);
  std::byte* const from = kind == TransferKind::kPut ? transfer.local.data() : remote;
  std::byte* const to = kind == TransferKind::kPut ? remote : transfer.local.data();
  const size_t bytes = transfer.local.size();
  const bool lost = cut_.contains(view.connection_id());  // behind the cut in the same batch
  if (lost || fault == TransferFault::kNeverCompletes || fault == TransferFault::kCutLink) {
    if (!lost && fault == TransferFault::kCutLink) {
      cut_.insert(view.connection_id());
      if (bytes > 1) std::memcpy(to, from, bytes / 2);
      network_->cut(pool.local(), pool.remote());
    }
    add_pending(view.connection_id(), nullptr, std::move(completed));
    return true;
  }
  const auto copy = [from, to, bytes, fault, owner = pool.shared()] {
    if (bytes > 0) std::memcpy(to, from, bytes);
    if (fault == TransferFault::kFlipBit && bytes > 0) to[bytes / 2] ^= std::byte{0x10};
  };
  const uint64_t id = add_pending(view.connection_id(), copy, std::move(completed));
  if (network_->hold(pool.local(), pool.remote(), landing_of(id))) return true;
  if (const auto lands = network_->landing(pool.local(), pool.remote(), bytes)) {
    auto timer = std::make_shared<boost::asio::steady_timer>(context().io, *lands);
    timer->async_wait([timer, land = landing_of(id)](boost::system::error_code failure) {
      if (!failure) land();
    });
    return true;
  }
  pending_.erase(id);
  copy();
  return false;
}

uint64_t LoopbackDataPlane::add_pending(uint64_t connection, std::function<void()> copy,
                                        Completion completed) {
  const uint64_t id = next_pending_++;
  pending_.emplace(id, Pending{connection, std::move(copy), std::move(completed)});
  return id;
}

std::function<void()> LoopbackDataPlane::landing_of(uint64_t id) {
  return [self = self_, id] {
    if (!*self) return;
    auto pending = (*self)->pending_.extract(id);
    if (pending.empty()) return;
    pending.mapped().copy();
    pending.mapped().completed({});
  };
}

Result<bool> LoopbackDataPlane::flush(PoolView&, Completion) {
  return false;
}

// A broken connection completes what hung on it, as a reliable transport does; what has not landed never
// will.
void LoopbackDataPlane::connection_down(uint64_t connection_id) {
  cut_.erase(connection_id);
  std::vector<Completion> released;
  std::erase_if(pending_, [&](auto& entry) {
    if (entry.second.connection != connection_id) return false;
    released.push_back(std::move(entry.second.completed));
    return true;
  });
  for (const auto& completed : released) completed(Error{Code::kCancelled, "connection is down"});
}

}  // namespace lowkey::transport
