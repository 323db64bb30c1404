// Store and worker over UCX, the store in a process of its own that is really stopped and killed.
#include <gtest/gtest.h>

#include "tests/support/store_child.h"
#include "tests/unit/kvstore/service/store_cluster.h"
#include "transport/host_identity.h"
#include "transport/ucx/ucx_transport.h"

namespace lowkey::kvstore {
namespace {

using namespace std::chrono_literals;
using testing::StoreChild;

// Parameter: whether both know a common host (shared memory) or not (network).
class StoreUcx : public ::testing::TestWithParam<bool> {
 protected:
  void start(uint64_t host_bytes, Duration lease = 30s) {
    const std::string host = GetParam() ? transport::host_identity() : "";
    store = std::make_unique<StoreChild>(LOWKEY_STORE_PROCESS, host_bytes, lease, host, kPatience);
    const auto planes = [host, this](
                            auto& io, transport::ControlOptions options,
                            auto handlers) -> decltype(MakePlanes()(io, options, std::move(handlers))) {
      options.self.host = host;
      if (notices_silence) options.missed_heartbeats = transport::ControlOptions().missed_heartbeats;
      LOWKEY_ASSIGN(transport, transport::make_ucx_transport(io, std::move(options), std::move(handlers)));
      return std::pair(std::move(transport.control), std::move(transport.data));
    };
    worker = std::make_unique<WorkerProcess>(planes, 1, test_origin());
    worker->connect(store->address());
  }
  bool notices_silence = false;       // as soon as the product does
  std::unique_ptr<StoreChild> store;  // outlives the worker
  std::unique_ptr<WorkerProcess> worker;
};

TEST_P(StoreUcx, PagesComeBackByteForByteOverTheRightTransport) {
  start(64 << 20);
  auto pages = test_pages(40, 150'016);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 40u);
  const Restored restored = worker->restore(reads(pages));
  EXPECT_EQ(restored.pages, 40u) << restored.reason;
  for (const TestPage& page : pages) EXPECT_TRUE(page.came_back());
  EXPECT_EQ(worker->spill(writes(pages)).already_present, 40u);
  const auto stats = worker->on_io([&] { return worker->control->stats(); });
  ASSERT_EQ(stats.transfers.size(), 1u);
  EXPECT_EQ(stats.transfers.begin()->first, GetParam() ? "shm" : "tcp");
  EXPECT_GT(stats.transfers.begin()->second.get_bytes, 40u * 150'016);
}

TEST_P(StoreUcx, AnUnfaithfulPageIsAMissAndDropped) {
  start(1 << 20);
  auto pages = test_pages(3);
  pages[1].header.checksums[1] ^= 1;
  pages[1].header.header_checksum = pages[1].header.compute_checksum();
  ASSERT_EQ(worker->spill(writes(pages)).stored, 3u);
  EXPECT_EQ(worker->restore(reads(pages)).pages, 1u);
  EXPECT_EQ(worker->restored("corrupt"), 1);
  EXPECT_EQ(worker->spill(writes(pages)).stored, 1u);
}

TEST_P(StoreUcx, AFullStoreEvictsOrDrops) {
  start(64 << 10, 100ms);
  auto huge = test_pages(1, 64 << 10);
  EXPECT_EQ(worker->spill(writes(huge)).store_full, 1u);
  auto pages = test_pages(20);
  EXPECT_EQ(worker->spill(writes(pages)).store_full, 10u)
      << "pages in flight do not make room for each other";
  for (size_t i = 0; i < pages.size(); i += 5) {
    EXPECT_EQ(worker->spill(writes(std::span(pages).subspan(i, 5))).store_full, 0u);
  }
  auto last = std::span(pages).last(5);
  EXPECT_EQ(worker->restore(reads(last)).pages, 5u);
  EXPECT_EQ(worker->restore(reads(pages)).pages, 0u) << "the first were evicted";
}

TEST_P(StoreUcx, AStoppedStoreIsAMissByTheDeadlineAndServesAgain) {
  start(1 << 20);
  auto pages = test_pages(3);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 3u);
  store->stop();
  EXPECT_EQ(worker->restore(reads(pages), 100ms).pages, 0u);
  EXPECT_EQ(worker->spill(writes(test_pages(1, 4096, 50)), 100ms).failed, 1u);
  store->resume();
  EXPECT_EQ(worker->restore(reads(pages)).pages, 3u);
}

TEST_P(StoreUcx, AStoreStoppedForGoodIsNoticedByItsSilence) {
  notices_silence = true;
  start(1 << 20);
  auto pages = test_pages(3);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 3u);
  store->stop();
  EXPECT_EQ(worker->restore(reads(pages), 1h).pages, 0u) << "ends with the connection, not with its deadline";
  EXPECT_EQ(worker->on_io([&] { return worker->set->num_ready(); }), 0u);
}

TEST_P(StoreUcx, AKilledStoreInTheMiddleOfRestoresIsAMissAtOnce) {
  start(64 << 20);
  auto pages = test_pages(16, 1 << 18);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 16u);
  std::vector<std::vector<TestPage>> readers(4, pages);
  std::vector<std::future<Restored>> restores;
  for (auto& reader : readers) restores.push_back(worker->start_restore(reads(reader), 1h));
  EXPECT_EQ(WorkerProcess::wait(std::move(restores.front())).pages, 16u);  // the others are under way
  store->kill();
  for (size_t i = 1; i < restores.size(); ++i) {
    const size_t restored = WorkerProcess::wait(std::move(restores[i])).pages;
    for (size_t p = 0; p < restored; ++p) EXPECT_TRUE(readers[i][p].came_back());
  }
  EXPECT_TRUE(worker->eventually([&] { return worker->set->num_ready() == 0; }));
  EXPECT_EQ(worker->restore(reads(pages)).pages, 0u);
  EXPECT_EQ(worker->spill(writes(std::span(pages).first(1))).failed, 1u);
}

INSTANTIATE_TEST_SUITE_P(Transports, StoreUcx, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "SharedMemory" : "Network"; });

}  // namespace
}  // namespace lowkey::kvstore
