// Messages between workers and stores. The input is a list of (type, 16-bit length, body): each goes to a
// store, which must keep its ledger and never leave its pool, and to a worker's client in the middle of a
// spill and a restore, which must never be led outside of the pool.
#include <boost/asio/io_context.hpp>

#include <algorithm>

#include "base/check.h"
#include "kvstore/service/store_service.h"
#include "kvstore/service/store_set.h"
#include "monitoring/metrics.h"
#include "tests/fuzz/messages.h"

namespace lowkey::kvstore {
namespace {

using transport::ConnectionPtr;
using transport::MessageType;

constexpr size_t kPoolBytes = 1 << 16;

struct FuzzPool : transport::MemoryPool, transport::RemotePool {
  std::span<std::byte> bytes() override { return memory; }
  std::string remote_handle() const override { return "pool"; }
  uint64_t size() const override { return memory.size(); }
  const char* transport() const override { return "fuzz"; }
  std::vector<std::byte> memory = std::vector<std::byte>(kPoolBytes);
};

// Stops the fuzzer at any access outside of the pool.
class FuzzPlane : public transport::DataPlane {
 public:
  std::string address() const override { return "fuzz"; }
  Result<std::shared_ptr<transport::MemoryPool>> allocate(size_t) override {
    return std::shared_ptr<transport::MemoryPool>(pool_);
  }
  Result<std::shared_ptr<transport::RemotePool>> open(const ConnectionPtr&, const std::string&,
                                                      const std::string&) override {
    return std::shared_ptr<transport::RemotePool>(pool_);
  }
  void put(const std::shared_ptr<transport::RemotePool>&, std::vector<transport::Transfer> batch, Deadline,
           std::shared_ptr<void>, std::function<void(Status)> done) override {
    check(batch);
    done({});
  }
  void get(const std::shared_ptr<transport::RemotePool>&, std::vector<transport::Transfer> batch, Deadline,
           std::shared_ptr<void>, std::function<void(Status)> done) override {
    check(batch);
    done({});
  }

 private:
  static void check(const std::vector<transport::Transfer>& batch) {
    for (const auto& [local, offset] : batch) {
      LOWKEY_CHECK(offset <= kPoolBytes && local.size() <= kPoolBytes - offset, "{} bytes at {}",
                   local.size(), offset);
    }
  }
  std::shared_ptr<FuzzPool> pool_ = std::make_shared<FuzzPool>();
};

void fuzz_store(const uint8_t* data, size_t size) {
  static monitoring::Metrics metrics({{"role", "store"}, {"rank", "0"}});
  boost::asio::io_context io;
  FuzzPlane plane;
  auto service = StoreService::make(io, plane, metrics, {.host_bytes = kPoolBytes}).value();
  auto peer = std::make_shared<fuzz::Peer>(transport::Role::kWorker);
  service->on_up(peer);
  fuzz::for_each_message(data, size, [&](uint8_t type, std::string_view body) {
    if (!peer->closed()) service->on_message(peer, static_cast<MessageType>(type), body);
    const StoreLedger ledger = service->ledger();
    LOWKEY_CHECK(ledger.used == ledger.evictable + ledger.pinned + ledger.in_flight);
    LOWKEY_CHECK(ledger.used + ledger.free == ledger.capacity && ledger.requested <= ledger.used);
  });
  service->on_down(peer);
  LOWKEY_CHECK(service->ledger().in_flight == 0 && service->ledger().pinned == 0);
}

void fuzz_client(const uint8_t* data, size_t size) {
  boost::asio::io_context io;
  FuzzPlane plane;
  auto store = std::make_shared<fuzz::Peer>(transport::Role::kStore);
  static monitoring::Metrics metrics({{"role", "worker"}, {"rank", "1"}});
  static ByteThread bytes;
  static const RestoreTransfer::Context context{{}, {}, bytes};
  const auto in_flight = std::make_shared<InFlight>(metrics, monitoring::Metric::kRestoreBytesInFlight);
  std::vector<std::byte> memory(256);
  int outcomes = 0;
  {
    StoreClient client({io, plane, context, in_flight, in_flight}, store);
    client.on_message(MessageType::kPoolInfo,
                      std::string_view("\x20\x80\xea\x01", 4));  // reservation_ms: 30000
    LOWKEY_CHECK(client.ready());
    PageWrite written{.slabs = {std::span<const std::byte>(memory)}};
    PageRead wanted{.slabs = {std::span<std::byte>(memory)}};
    const Deadline deadline = Deadline::in(std::chrono::hours(1));
    client.spill({written, written}, deadline, [&](const SpillOutcome& outcome) {
      ++outcomes;
      LOWKEY_CHECK(outcome.stored + outcome.already_present + outcome.store_full + outcome.failed == 2);
    });
    const RestoreOptions options{.gaps = size % 2 == 0};
    client.restore({wanted, wanted}, options, deadline, [&](const RestoreOutcome& outcome) {
      ++outcomes;
      LOWKEY_CHECK(outcome.fates.size() == 2 && std::ranges::count(outcome.fates, PageFate::kOpen) == 0);
    });
    fuzz::for_each_message(data, size, [&](uint8_t type, std::string_view body) {
      if (!store->closed()) client.on_message(static_cast<MessageType>(type), body);
      io.poll();
    });
  }
  io.restart();
  while (outcomes < 2) io.run_one_for(std::chrono::seconds(1));  // pages that are still being verified
}

}  // namespace
}  // namespace lowkey::kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lowkey::kvstore::fuzz_store(data, size);
  lowkey::kvstore::fuzz_client(data, size);
  return 0;
}
