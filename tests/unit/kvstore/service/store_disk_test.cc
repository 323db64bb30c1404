// A store with a disk tier as its workers and the coordinator see it, over the loopback transport.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "tests/support/temp_folder.h"
#include "tests/unit/kvstore/service/store_cluster.h"
#include "transport/loopback/loopback_network.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {
namespace {

using namespace std::chrono_literals;
using testing::TempFolder;

// Takes PrefixEvents as the coordinator does.
class CoordinatorProcess : public Process {
 public:
  explicit CoordinatorProcess(const MakePlanes& planes) : Process(transport::Role::kCoordinator, 0) {
    make(planes, peer_options(transport::Role::kCoordinator, 0),
         {.on_up = [this](const auto& peer) { store = peer; },
          .on_message =
              [this](const auto&, auto type, auto body) {
                if (type == transport::MessageType::kPrefixEvents) take(body);
              },
          .on_down = [](const auto&, const auto&) {}});
    run();
  }
  ~CoordinatorProcess() {
    stop([this] { store.reset(); });
  }
  void connect(const std::string& address) {
    on_io([&] {
      control->connect(address, Deadline::in(kPatience), [](auto) {});
      return 0;
    });
    EXPECT_TRUE(eventually([&] { return resets > 0; }));
  }
  bool holds(const std::set<Hash128>& pages) {
    return eventually([&] { return known == pages; });
  }

  transport::ConnectionPtr store;
  std::set<Hash128> known;
  uint64_t sequence = 0, resets = 0;
  bool gap = false;

 private:
  void take(std::string_view body) {
    wire::PrefixEvents events;
    ASSERT_TRUE(events.ParseFromArray(body.data(), static_cast<int>(body.size())));
    if (events.reset()) {
      known.clear();
      ++resets;
    } else {
      gap |= events.sequence() != sequence + 1;
    }
    sequence = events.sequence();
    for (size_t at = 0; at < events.added().size(); at += 16) {
      known.insert(*parse_hash128(std::string_view(events.added()).substr(at, 16)));
    }
    for (size_t at = 0; at < events.removed().size(); at += 16) {
      EXPECT_EQ(known.erase(*parse_hash128(std::string_view(events.removed()).substr(at, 16))), 1u);
    }
  }
};

class StoreDisk : public ::testing::Test {
 protected:
  MakePlanes planes() {
    return [network = network](auto& io, auto options,
                               auto handlers) -> decltype(MakePlanes()(io, options, handlers)) {
      LOWKEY_ASSIGN(transport, network->make_transport(io, std::move(options), std::move(handlers)));
      return std::pair(std::move(transport.control), std::move(transport.data));
    };
  }
  StoreService::Options options(uint64_t host_bytes, int number = 0) {
    StoreService::Options options{.host_bytes = host_bytes,
                                  .tiered = {.deadline = kPatience / 2},  // disks and threads may be late
                                  .announce_delay = 1ms,
                                  .announce_retry = 10ms};
    options.disk = DiskTier::Options{.log = {.folder = folder.path().string(),
                                             .number = number,
                                             .capacity = 8 << 20,
                                             .segment_bytes = 1 << 20}};
    return options;
  }
  void start(const StoreService::Options& store_options, int rank = 9) {
    worker.reset();
    store.reset();
    store = std::make_unique<StoreProcess>(planes(), rank, store_options);
    worker = std::make_unique<WorkerProcess>(planes(), 1, origin());
    worker->connect(store->control->address());
  }
  static PageOrigin origin() {
    PageOrigin origin = test_origin();
    origin.rank = 0;
    return origin;
  }
  static std::vector<TestPage> pages(size_t n, uint64_t first_seed = 1) {
    std::vector<TestPage> pages;
    for (size_t i = 0; i < n; ++i) pages.emplace_back(first_seed + i, 4096, i == 0, origin());
    return pages;
  }
  static std::set<Hash128> identities(std::span<const TestPage> pages) {
    std::set<Hash128> result;
    for (const TestPage& page : pages) result.insert(page.header.identity);
    return result;
  }
  double disk_pages(const char* outcome) {
    return store->metric({"lowkey_disk_pages_total", fmt::format("outcome=\"{}\"", outcome)});
  }
  bool written(double n) {
    return store->eventually([&] { return disk_pages("written") == n && store->service->disk_idle(); });
  }
  bool scanned(uint64_t n) {
    return store->eventually([&] { return store->service->disk_stats()->pages == n; });
  }

  TempFolder folder;
  std::shared_ptr<transport::LoopbackNetwork> network = transport::LoopbackNetwork::create();
  std::unique_ptr<StoreProcess> store;
  std::unique_ptr<WorkerProcess> worker;
};

TEST_F(StoreDisk, ARestartedStoreGivesItsPagesBackFromDisk) {
  auto all = pages(40);
  start(options(1 << 20));
  ASSERT_EQ(worker->spill(writes(all)).stored, 40u);
  ASSERT_TRUE(written(40));
  start(options(1 << 20));
  ASSERT_TRUE(scanned(40));
  EXPECT_EQ(store->ledger().used, 0u);
  const Restored restored = worker->restore(reads(all));
  EXPECT_EQ(restored.pages, 40u) << restored.reason;
  for (const TestPage& page : all) EXPECT_TRUE(page.came_back());
  for (const PageSource source : restored.sources) EXPECT_EQ(source, PageSource::kDisk);
  EXPECT_EQ(disk_pages("read"), 40);
  EXPECT_EQ(disk_pages("written"), 0) << "what is on disk is not written again";
  const Restored again = worker->restore(reads(all));
  EXPECT_EQ(again.pages, 40u);
  EXPECT_EQ(again.sources[0], PageSource::kHost) << "in memory now";
  EXPECT_EQ(store->metric({"lowkey_kv_pages{", "tier=\"disk\""}), 40);
  EXPECT_EQ(worker->spill(writes(all)).already_present, 40u);
}

TEST_F(StoreDisk, MorePagesThanMemoryHoldsAreReadBackAsTheyAreWanted) {
  auto all = pages(60);
  start(options(20 * 6144));
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(worker->spill(writes(std::span(all).subspan(i, 1))).stored, 1u);
    ASSERT_TRUE(written(static_cast<double>(i + 1)));
  }
  EXPECT_GT(store->metric({"lowkey_store_evicted_pages_total"}), 0);
  for (size_t i = 0; i < all.size(); i += 10) {
    const Restored restored = worker->restore(reads(std::span(all).subspan(i, 10)));
    EXPECT_EQ(restored.pages, 10u) << i << ": " << restored.reason;
  }
  for (const TestPage& page : all) EXPECT_TRUE(page.came_back());
  EXPECT_GT(store->metric({"lowkey_store_evict_to_reuse_seconds_count"}), 0);
  EXPECT_LE(store->ledger().used, store->ledger().capacity);
  EXPECT_TRUE(store->eventually([&] { return store->service->ledger().pinned == 0; }));
  // More than memory holds at once: the run ends where memory does.
  const Restored too_many = worker->restore(reads(all));
  EXPECT_GE(too_many.pages, 15u) << too_many.reason;
}

TEST_F(StoreDisk, FlippedBitsOnDiskAreAMissAndCounted) {
  auto all = pages(3);
  start(options(1 << 20));
  ASSERT_EQ(worker->spill(writes(all)).stored, 3u);
  ASSERT_TRUE(written(3));
  start(options(1 << 20));
  ASSERT_TRUE(scanned(3));
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
    if (!segment_number(entry.path().filename().string())) continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(512 + (512 + 4096 + 2048) + 512 + 10);  // the first level of the second record
    file.write("flip", 4);
  }
  const Restored restored = worker->restore(reads(all));
  EXPECT_LT(restored.pages, 3u);
  EXPECT_EQ(disk_pages("corrupt"), 1);
  const size_t lost = restored.pages;
  EXPECT_TRUE(all[lost].untouched());
  EXPECT_EQ(worker->spill(writes(std::span(all).subspan(lost, 1))).stored, 1u);
  EXPECT_EQ(worker->restore(reads(all)).pages, 3u);
}

TEST_F(StoreDisk, ALookupDoesNotWaitForADiskThatHangs) {
  auto all = pages(4);
  start(options(1 << 20));
  ASSERT_EQ(worker->spill(writes(all)).stored, 4u);
  ASSERT_TRUE(written(4));
  StoreService::Options hanging = options(1 << 20);
  hanging.tiered.deadline = 30ms;
  start(hanging);
  ASSERT_TRUE(scanned(4));
  std::vector<std::filesystem::path> pipes;  // opening one for reading waits until somebody writes
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
    if (segment_number(entry.path().filename().string())) pipes.push_back(entry.path());
  }
  for (const auto& path : pipes) {
    std::filesystem::remove(path);
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  }
  EXPECT_EQ(worker->restore(reads(all)).pages, 0u);
  EXPECT_GT(store->ledger().in_flight, 0u) << "the disk may still write there";
  auto others = pages(2, 100);
  EXPECT_EQ(worker->spill(writes(others)).stored, 2u) << "the store works on";
  EXPECT_EQ(worker->restore(reads(others)).pages, 2u);
  EXPECT_TRUE(store->eventually([&] {  // one open() after the other ends
    for (const auto& path : pipes) const UniqueFd writer(::open(path.c_str(), O_WRONLY | O_NONBLOCK));
    return store->service->ledger().in_flight == 0;
  }));
}

TEST_F(StoreDisk, TheCoordinatorIsToldWhatComesAndGoes) {
  StoreService::Options memory_only = options(20 * 6144);
  memory_only.disk.reset();
  start(memory_only);
  CoordinatorProcess coordinator(planes());
  auto first = pages(10);
  ASSERT_EQ(worker->spill(writes(first)).stored, 10u);
  coordinator.connect(store->control->address());
  EXPECT_TRUE(coordinator.holds(identities(first))) << "told on connecting";
  auto others = pages(80, 100);
  for (size_t i = 0; i < others.size(); i += 10) {
    ASSERT_EQ(worker->spill(writes(std::span(others).subspan(i, 10))).stored, 10u);
  }
  // Of equal size it may be on the way, too: nothing is told after the newest pages.
  EXPECT_TRUE(coordinator.eventually([&] {
    const auto newest = identities(std::span(others).last(10));
    return std::ranges::all_of(newest,
                               [&](const Hash128& page) { return coordinator.known.contains(page); }) &&
           store->metric({"lowkey_kv_pages{", "tier=\"host\""}) ==
               static_cast<double>(coordinator.known.size());
  })) << "evicted pages were taken back";
  EXPECT_FALSE(coordinator.known.contains(first[0].header.identity));
  const auto before = coordinator.known;
  coordinator.on_io([&] {
    coordinator.known = {Hash128{1, 1}};
    return coordinator.store->send(transport::MessageType::kPrefixResync, "").ok();
  });
  EXPECT_TRUE(coordinator.holds(before));
  EXPECT_EQ(coordinator.resets, 2u);
  EXPECT_FALSE(coordinator.gap);
  EXPECT_TRUE(store->eventually(  // it is counted after it was sent
      [&] {
        return store->metric({"lowkey_prefix_events_total", "kind=\"reset\""}) == 2;
      }));
}

TEST_F(StoreDisk, APageOnDiskIsStillHeld) {
  start(options(20 * 6144));
  CoordinatorProcess coordinator(planes());
  coordinator.connect(store->control->address());
  auto all = pages(60);
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(worker->spill(writes(std::span(all).subspan(i, 1))).stored, 1u);
    ASSERT_TRUE(written(static_cast<double>(i + 1)));
  }
  EXPECT_TRUE(coordinator.holds(identities(all)));
  EXPECT_LT(store->ledger().pages_evictable, 60u);
  start(options(20 * 6144));
  CoordinatorProcess next(planes());
  next.connect(store->control->address());
  EXPECT_TRUE(next.holds(identities(all))) << "a restarted store tells what it has found";
}

TEST_F(StoreDisk, OnlySlicesOfRankZeroAreTold) {
  start(options(1 << 20));
  CoordinatorProcess coordinator(planes());
  coordinator.connect(store->control->address());
  auto mine = pages(2);
  auto theirs = std::vector{TestPage(50, 4096, false, test_origin())};  // rank 1
  ASSERT_EQ(worker->spill(writes(theirs)).stored, 1u);
  ASSERT_EQ(worker->spill(writes(mine)).stored, 2u);
  EXPECT_TRUE(coordinator.holds(identities(mine)));
}

TEST(PoolMemory, ABudgetThatDoesNotFitIsRefusedInOneLine) {
  EXPECT_TRUE(check_memory(1 << 20, 1 << 20).ok());
  const Status refused = check_memory(3ull << 30, 1ull << 30);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::kUsage);
  EXPECT_NE(refused.error().message.find("--host-bytes"), std::string::npos);
  EXPECT_EQ(refused.error().message.find('\n'), std::string::npos);
}

TEST(PoolMemory, ResidentBytesAreThoseThatWereTouched) {
  constexpr size_t kBytes = 8 << 20;
  void* memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  ::madvise(memory, kBytes, MADV_NOHUGEPAGE);
  const std::span<std::byte> pool(static_cast<std::byte*>(memory), kBytes);
  PoolResidency residency(pool);
  EXPECT_EQ(residency.measure(), 0u);
  for (size_t at = 0; at < kBytes / 2; at += 4096) pool[at] = std::byte{1};
  EXPECT_EQ(residency.measure(), kBytes / 2);
  ::munmap(memory, kBytes);
}

}  // namespace
}  // namespace lowkey::kvstore
