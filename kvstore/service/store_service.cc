#include "kvstore/service/store_service.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include <algorithm>

#include "base/host_memory.h"
#include "base/log.h"
#include "base/numa.h"
#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {

using monitoring::Metric;
using transport::ConnectionPtr;
using transport::MessageType;

Result<std::shared_ptr<StoreService>> StoreService::make(boost::asio::io_context& io,
                                                         transport::DataPlane& data,
                                                         monitoring::Metrics& metrics,
                                                         const Options& options) {
  LOWKEY_TRY(check_memory(options.host_bytes, host_memory_available_bytes()));
  const NumaInterleave interleave;
  LOWKEY_ASSIGN(pool, data.allocate(options.host_bytes));
  std::shared_ptr<StoreService> service(
      new StoreService(io, std::move(pool), data.address(), metrics, options));
  LOWKEY_TRY(service->start_disk());
  service->settle();
  return service;
}

StoreService::StoreService(boost::asio::io_context& io, std::shared_ptr<transport::MemoryPool> pool,
                           std::string data_address, monitoring::Metrics& metrics, const Options& options)
    : io_(io),
      options_(options),
      pool_(std::move(pool)),
      data_address_(std::move(data_address)),
      metrics_(metrics),
      residency_(pool_->bytes()),
      announcer_(io, metrics, options.announce_delay, options.announce_retry),
      index_({.capacity = pool_->bytes().size(),
              .reservation_ttl = options.reservation_ttl,
              .lease_ttl = options.lease_ttl,
              .on_change = [this](const auto& header, bool held) { on_index_change(header, held); }}),
      timer_(io) {
  residency_.measure_all();
  metrics_.set(Metric::kStorePoolBytes, static_cast<double>(pool_->bytes().size()), {{"kind", "requested"}});
  measure();
}

Status StoreService::start_disk() {
  if (!options_.disk) return {};
  LOWKEY_ASSIGN(
      disk, DiskTier::open(
                *options_.disk, [&io = io_](std::function<void()> f) { boost::asio::post(io, std::move(f)); },
                [weak = weak_from_this()](const std::vector<DiskChange>& changes) {
                  if (const auto self = weak.lock()) self->on_disk_change(changes);
                }));
  disk_ = std::move(disk);
  const auto on_progress = [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->settle();
  };
  writer_ = std::make_shared<DiskWriter>(index_, pool_->bytes(), *disk_, metrics_, on_progress);
  tiered_ = std::make_shared<TieredLookup>(io_, index_, pool_->bytes(), *disk_, metrics_, options_.tiered,
                                           on_progress);
  return {};
}

void StoreService::on_index_change(const kernels::PageHeader& header, bool held) {
  if (header.rank == 0) announcer_.changed(header.identity, PrefixAnnouncer::kMemory, held);
  if (held && writer_) writer_->committed(header.identity);
}

void StoreService::on_disk_change(const std::vector<DiskChange>& changes) {
  for (const DiskChange& change : changes) {
    if (change.rank == 0) announcer_.changed(change.identity, PrefixAnnouncer::kDisk, change.held);
  }
  settle();
}

void StoreService::adopt_folders() {
  if (disk_) disk_->adopt();
}

bool StoreService::disk_idle() const {
  return !writer_ || writer_->idle();
}

void StoreService::measure() {
  metrics_.set(Metric::kStorePoolBytes, static_cast<double>(residency_.measure()), {{"kind", "resident"}});
}

std::optional<DiskStats> StoreService::disk_stats() const {
  return disk_ ? std::optional(disk_->stats()) : std::nullopt;
}

void StoreService::on_up(const ConnectionPtr& peer) {
  if (peer->peer().role == transport::Role::kCoordinator) return announcer_.connect(peer);
  if (peer->peer().role != transport::Role::kWorker) return;
  if (leaving_) return peer->close("the store leaves");
  workers_.emplace(peer->id(), peer);
  const auto milliseconds = [](Duration d) {
    return static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::milliseconds>(d).count());
  };
  wire::PoolInfo info;
  info.set_data_address(data_address_);
  info.set_remote_handle(pool_->remote_handle());
  info.set_capacity_bytes(index_.ledger().capacity);
  info.set_reservation_ms(milliseconds(options_.reservation_ttl));
  info.set_lease_ms(milliseconds(options_.lease_ttl));
  answer(peer, MessageType::kPoolInfo, info);
}

void StoreService::on_message(const ConnectionPtr& peer, MessageType type, std::string_view body) {
  if (const Status handled = handle(peer, type, body); !handled) {
    spdlog::warn("closing rank {}: {}", peer->peer().world_rank, handled.error().message);
    peer->close(handled.error().message);
  }
  settle();
}

void StoreService::on_down(const ConnectionPtr& peer) {
  if (peer->peer().role == transport::Role::kCoordinator) return on_coordinator_lost();
  if (tiered_) tiered_->drop_owner(peer->id());
  index_.drop_owner(peer->id());
  settle();
  workers_.erase(peer->id());
  if (workers_.empty() && left_) std::exchange(left_, nullptr)();
}

void StoreService::leave(std::function<void()> left) {
  leaving_ = true;
  if (workers_.empty()) return left();
  left_ = std::move(left);
  for (const auto& [id, worker] : workers_) answer(worker, MessageType::kLeave, wire::Leave());
}

void StoreService::on_coordinator_lost() {
  announcer_.connect(nullptr);
}

void StoreService::settle() {
  const StoreLedger ledger = index_.ledger();
  const auto kv = [&](Metric metric, const char* state, uint64_t value) {
    metrics_.set(metric, static_cast<double>(value), {{"tier", "host"}, {"state", state}});
  };
  kv(Metric::kKvBytes, "capacity", ledger.capacity);
  kv(Metric::kKvBytes, "used", ledger.pinned);
  kv(Metric::kKvBytes, "evictable", ledger.evictable);
  kv(Metric::kKvBytes, "in_flight", ledger.in_flight);
  kv(Metric::kKvBytes, "free", ledger.free);
  kv(Metric::kKvPages, "used", ledger.pages_pinned);
  kv(Metric::kKvPages, "evictable", ledger.pages_evictable);
  kv(Metric::kKvPages, "in_flight", ledger.pages_in_flight);
  metrics_.set(Metric::kStoreLeases, static_cast<double>(index_.num_leases()));
  const StoreCounters& now = index_.counters();
  metrics_.add(Metric::kStoreEvictions, static_cast<double>(now.evicted_pages - counted_.evicted_pages));
  metrics_.add(Metric::kStoreLevelDrops, static_cast<double>(now.level_drops - counted_.level_drops));
  metrics_.add(Metric::kStoreExpired, static_cast<double>(now.expired_leases - counted_.expired_leases),
               {{"what", "lease"}});
  metrics_.add(Metric::kStoreExpired,
               static_cast<double>(now.expired_reservations - counted_.expired_reservations),
               {{"what", "reservation"}});
  counted_ = now;
  if (disk_) count_disk();
  if (writer_) writer_->pump();
  arm();
}

void StoreService::count_disk() {
  const DiskStats disk = disk_->stats();
  const auto bytes = [&](const char* state, uint64_t value) {
    metrics_.set(Metric::kKvBytes, static_cast<double>(value), {{"tier", "disk"}, {"state", state}});
  };
  bytes("capacity", disk.capacity);
  bytes("used", disk.bytes);
  bytes("free", disk.capacity - std::min(disk.bytes, disk.capacity));
  metrics_.set(Metric::kKvPages, static_cast<double>(disk.pages), {{"tier", "disk"}, {"state", "used"}});
  if (disk.torn > counted_torn_) {
    metrics_.add(Metric::kDiskPages, static_cast<double>(disk.torn - counted_torn_), {{"outcome", "torn"}});
    counted_torn_ = disk.torn;
  }
}

void StoreService::arm() {
  const auto next = index_.next_expiry();
  if (next == armed_) return;
  armed_ = next;
  if (!next) {
    timer_.cancel();
    return;
  }
  timer_.expires_at(*next);
  timer_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
    const auto self = weak.lock();
    if (error || !self) return;
    self->armed_.reset();
    self->index_.expire(Clock::now());
    self->settle();
  });
}

}  // namespace lowkey::kvstore
