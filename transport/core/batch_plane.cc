#include "transport/core/batch_plane.h"

#include <boost/asio/post.hpp>

#include "base/log.h"
#include "transport/core/path_probe.h"
#include "transport/core/session.h"
#include "transport/core/session_context.h"

namespace lowkey::transport {
namespace {

constexpr size_t kMaxBatches = 4096;      // under way or quarantined
constexpr size_t kSliceBytes = 4u << 20;  // half a millisecond of shared-memory copy
constexpr size_t kMaxOutstanding = 64;    // transfers of one batch; enough to fill any network
// Of one connection: at 100 Mbit/s a heartbeat gets through in 0.7 s, and no network holds as much.
constexpr uint64_t kMaxBytesOnTheirWay = 8u << 20;

}  // namespace

struct BatchPlane::Batch {
  Batch(boost::asio::io_context& io, TransferKind kind, Purpose purpose, std::shared_ptr<PoolView> pool)
      : kind(kind), purpose(purpose), pool(std::move(pool)), timer(io) {}

  const TransferKind kind;
  const Purpose purpose;
  const std::shared_ptr<PoolView> pool;
  const TimePoint submitted = Clock::now();
  std::vector<Transfer> transfers;
  size_t bytes = 0;
  size_t next = 0;         // first transfer not started
  size_t outstanding = 0;  // started, not completed (the flush included)
  bool flushed = false;    // the flush has been started
  bool advancing = false;  // a slice is being started or is posted
  bool waiting = false;    // for room on its way
  bool reported = false;
  bool quarantined = false;
  std::shared_ptr<void> keep_alive;
  std::function<void(Status)> done;
  boost::asio::steady_timer timer;
  BatchPlane* plane = nullptr;  // null once the plane is gone
};

BatchPlane::BatchPlane(std::shared_ptr<SessionContext> context)
    : context_(std::move(context)), self_(std::make_shared<BatchPlane*>(this)) {
  context_->down_observer = [this](uint64_t id, const Error& error) { fail_connection(id, error); };
}

BatchPlane::~BatchPlane() {
  *self_ = nullptr;
  context_->down_observer = nullptr;
  ways_.clear();
  for (const auto& batch : batches_) {
    batch->plane = nullptr;
    batch->timer.cancel();
    batch->done = nullptr;
  }
}

void BatchPlane::put(const std::shared_ptr<RemotePool>& pool, std::vector<Transfer> batch, Deadline deadline,
                     std::shared_ptr<void> keep_alive, std::function<void(Status)> done) {
  submit(TransferKind::kPut, pool, std::move(batch), deadline, std::move(keep_alive), std::move(done));
}

void BatchPlane::get(const std::shared_ptr<RemotePool>& pool, std::vector<Transfer> batch, Deadline deadline,
                     std::shared_ptr<void> keep_alive, std::function<void(Status)> done) {
  submit(TransferKind::kGet, pool, std::move(batch), deadline, std::move(keep_alive), std::move(done));
}

Result<std::shared_ptr<Session>> BatchPlane::session_of(const ConnectionPtr& peer) const {
  auto session = std::dynamic_pointer_cast<Session>(peer);
  if (!session || !session->is_up()) return Error{Code::kUnavailable, "connection is down"};
  const auto found = context_->sessions.find(session->id());
  if (found == context_->sessions.end() || found->second != session) {
    return Error{Code::kInvalidArgument, "connection of another transport"};
  }
  return session;
}

void BatchPlane::submit(TransferKind kind, const std::shared_ptr<RemotePool>& pool,
                        std::vector<Transfer> transfers, Deadline deadline, std::shared_ptr<void> keep_alive,
                        std::function<void(Status)> done, Purpose purpose) {
  auto view = std::dynamic_pointer_cast<PoolView>(pool);
  LOWKEY_CHECK(view != nullptr, "a pool of another plane");
  auto batch = std::make_shared<Batch>(context_->io, kind, purpose, std::move(view));
  batch->plane = this;
  batch->transfers = std::move(transfers);
  for (const Transfer& transfer : batch->transfers) batch->bytes += transfer.local.size();
  batch->keep_alive = std::move(keep_alive);
  batch->done = std::move(done);
  const Status admitted = admit(*batch);
  batches_.insert(batch);
  batch->timer.expires_at(deadline.at());
  batch->timer.async_wait([this, batch](boost::system::error_code ec) {
    if (ec || !batch->plane) return;
    report(batch, Error{Code::kDeadlineExceeded,
                        fmt::format("{} of {} bytes did not finish before its deadline",
                                    batch->kind == TransferKind::kPut ? "put" : "get", batch->bytes)});
    release_if_settled(batch);
  });
  batch->advancing = true;
  boost::asio::post(context_->io, [this, batch, admitted] {
    if (!batch->plane) return;
    batch->advancing = false;
    if (!admitted.ok()) report(batch, admitted);
    advance(batch);
  });
}

Status BatchPlane::admit(const Batch& batch) const {
  if (batches_.size() >= kMaxBatches) {
    return Error{Code::kResourceExhausted,
                 fmt::format("{} batches under way or quarantined", batches_.size())};
  }
  if (!context_->sessions.contains(batch.pool->connection_id())) {
    return Error{Code::kUnavailable, "the pool's process is down"};
  }
  for (const Transfer& transfer : batch.transfers) {
    const bool measures = batch.purpose == Purpose::kMeasure;
    const uint64_t size = batch.pool->size() + (measures ? batch.pool->scratch_bytes() : 0);
    if (transfer.remote_offset > size || transfer.local.size() > size - transfer.remote_offset) {
      return Error{Code::kInvalidArgument, fmt::format("{} bytes at offset {} of a pool of {}",
                                                       transfer.local.size(), transfer.remote_offset, size)};
    }
  }
  return {};
}

void BatchPlane::advance(const BatchPtr& batch) {
  if (!batch->reported && !batch->advancing) start_slice(batch);
  release_if_settled(batch);
}

void BatchPlane::start_slice(const BatchPtr& batch) {
  const auto completion_of = [&batch](uint64_t bytes) {
    return [batch, bytes](const Status& status) {
      --batch->outstanding;
      if (batch->plane) batch->plane->completed(batch, bytes, status);
    };
  };
  size_t slice = 0;
  while (!batch->flushed && batch->outstanding < kMaxOutstanding) {
    if (slice >= kSliceBytes) {
      batch->advancing = true;
      boost::asio::post(context_->io, [this, batch] {
        if (!batch->plane) return;
        batch->advancing = false;
        advance(batch);
      });
      return;
    }
    const bool last = batch->next == batch->transfers.size();
    const uint64_t bytes = last ? 0 : batch->transfers[batch->next].local.size();
    if (!last && !take_turn(batch, bytes)) return;
    auto started =
        last ? flush(*batch->pool, completion_of(0))
             : start(*batch->pool, batch->kind, batch->transfers[batch->next], completion_of(bytes));
    if (!started.ok()) return report(batch, started.error());
    if (*started) {
      ++batch->outstanding;
      ways_[batch->pool->connection_id()].bytes += bytes;
    }
    if (last) {
      batch->flushed = true;
    } else {
      slice += bytes;
      ++batch->next;
    }
  }
  if (batch->flushed && batch->outstanding == 0) report(batch, {});
}

bool BatchPlane::take_turn(const BatchPtr& batch, uint64_t bytes) {
  Way& way = ways_[batch->pool->connection_id()];
  const bool first = way.waiting.empty() || way.waiting.front() == batch;
  const bool room = way.bytes == 0 || way.bytes + bytes <= kMaxBytesOnTheirWay;
  if (!first || !room) {
    if (!std::exchange(batch->waiting, true)) way.waiting.push_back(batch);
    return false;
  }
  if (std::exchange(batch->waiting, false)) way.waiting.pop_front();
  return true;
}

void BatchPlane::go_on(uint64_t connection_id) {
  const auto way = ways_.find(connection_id);
  if (way == ways_.end() || way->second.waiting.empty()) return;
  boost::asio::post(context_->io, [self = self_, connection_id] {
    if (!*self) return;
    auto& ways = (*self)->ways_;
    // Each takes its turn, and stands in line again where there is no room for more.
    while (ways.contains(connection_id) && !ways[connection_id].waiting.empty()) {
      const BatchPtr first = ways[connection_id].waiting.front();
      const size_t before = first->next;
      (*self)->advance(first);
      if (first->waiting && first->next == before) return;
    }
  });
}

void BatchPlane::completed(const BatchPtr& batch, uint64_t bytes, const Status& status) {
  const uint64_t connection_id = batch->pool->connection_id();
  if (const auto way = ways_.find(connection_id); way != ways_.end()) way->second.bytes -= bytes;
  go_on(connection_id);
  if (!status.ok()) {
    report(batch, status);
  } else if (batch->flushed && batch->outstanding == 0) {
    report(batch, {});
  }
  advance(batch);
}

void BatchPlane::report(const BatchPtr& batch, Status status) {
  if (batch->reported) return;
  batch->reported = true;
  batch->timer.cancel();
  if (std::exchange(batch->waiting, false)) {
    std::erase(ways_[batch->pool->connection_id()].waiting, batch);
    go_on(batch->pool->connection_id());
  }
  if (batch->purpose == Purpose::kUse) count(*batch, status.ok());
  if (batch->outstanding > 0) {
    batch->quarantined = true;
    context_->stats.quarantined_bytes_now += batch->bytes;
  }
  if (auto done = std::exchange(batch->done, nullptr)) done(std::move(status));
}

void BatchPlane::count(const Batch& batch, bool succeeded) {
  TransferStats& stats = context_->stats.transfers[batch.pool->transport()];
  const bool put = batch.kind == TransferKind::kPut;
  if (!succeeded) {
    ++(put ? stats.failed_puts : stats.failed_gets);
    return;
  }
  ++(put ? stats.put_batches : stats.get_batches);
  (put ? stats.put_bytes : stats.get_bytes) += batch.bytes;
  (put ? stats.put_seconds : stats.get_seconds) += seconds(Clock::now() - batch.submitted);
}

void BatchPlane::release_if_settled(const BatchPtr& batch) {
  if (!batch->reported || batch->outstanding > 0) return;
  if (std::exchange(batch->quarantined, false)) context_->stats.quarantined_bytes_now -= batch->bytes;
  batch->keep_alive.reset();
  batches_.erase(batch);
}

void BatchPlane::fail_connection(uint64_t connection_id, const Error& error) {
  const auto batches = batches_;
  for (const auto& batch : batches) {
    if (batch->pool->connection_id() != connection_id) continue;
    report(batch, Error{Code::kUnavailable, "the pool's process is down: " + error.message});
    release_if_settled(batch);
  }
  ways_.erase(connection_id);
  attested_.erase(connection_id);
  std::erase_if(context_->stats.paths_now,
                [&](const Attestation& path) { return path.connection == connection_id; });
  connection_down(connection_id);
}

void BatchPlane::attest(const std::shared_ptr<Session>& session, const std::shared_ptr<PoolView>& pool) {
  if (!attested_.insert(session->id()).second) return;
  Attestation attestation;
  attestation.connection = session->id();
  attestation.peer_role = session->peer().role;
  attestation.peer_rank = session->peer().world_rank;
  attestation.found = pool->path();
  attestation.presumed = pool->is_presumed();
  attestation.device = pool->device();
  attestation.gpu = gpu_memory(context_->options.on_gpu, pool->reaches_gpu_memory());
  if (pool->scratch_bytes() == 0) {  // a copy in one process: nothing to expect or to measure
    attestation.expected = attestation.found;
    boost::asio::post(context_->io, [self = self_, attestation] {
      if (*self) (*self)->attested(attestation);
    });
    return;
  }
  attestation.expected = expected_path(context_->options.self, session->peer());
  const auto move = [self = self_, pool](TransferKind kind, std::vector<Transfer> batch, Deadline deadline,
                                         std::shared_ptr<void> keep_alive, std::function<void(Status)> done) {
    if (!*self) return;
    (*self)->submit(kind, pool, std::move(batch), deadline, std::move(keep_alive), std::move(done),
                    Purpose::kMeasure);
  };
  const auto done = [self = self_, attestation](const PathRates& host, const PathRates& device) mutable {
    attestation.put_bytes_per_second = host.put;
    attestation.get_bytes_per_second = host.get;
    attestation.gpu_put_bytes_per_second = device.put;
    attestation.gpu_get_bytes_per_second = device.get;
    if (*self) (*self)->attested(attestation);
  };
  std::make_shared<PathProbe>(pool->size(), ProbeBudget(), context_->options.staged, move, done)->start();
}

void BatchPlane::attested(const Attestation& attestation) {
  const auto found = context_->sessions.find(attestation.connection);
  if (found == context_->sessions.end()) return;
  const auto session = found->second;
  context_->stats.paths_now.push_back(attestation);
  if (attestation.found == Path::kLoopback) {
    spdlog::debug("transport to {}", describe(attestation));
  } else if (attestation.as_expected()) {
    spdlog::info("transport to {}", describe(attestation));
  } else {
    spdlog::warn(
        "TRANSPORT MISMATCH, pages move slower than these hosts can: {}; check UCX_TLS and "
        "UCX_NET_DEVICES (RDMA is used only when UCX_TLS names it), /dev/shm and IPC namespaces",
        describe(attestation));
  }
  if (context_->handlers.on_attested) context_->handlers.on_attested(session, attestation);
}

}  // namespace lowkey::transport
