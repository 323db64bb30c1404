// Store and workers over the loopback transport with its faults: whatever breaks, the outcome is a miss or a
// counted drop, in time, and the ledger is right again.
#include <gtest/gtest.h>

#include <atomic>

#include "tests/unit/kvstore/service/store_cluster.h"
#include "transport/loopback/loopback_network.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {
namespace {

using namespace std::chrono_literals;
using transport::TransferFault;

class StoreLoopback : public testing::Test {
 protected:
  MakePlanes planes() {
    return [network = network](auto& io, auto options,
                               auto handlers) -> decltype(MakePlanes()(io, options, handlers)) {
      LOWKEY_ASSIGN(transport, network->make_transport(io, std::move(options), std::move(handlers)));
      return std::pair(std::move(transport.control), std::move(transport.data));
    };
  }
  void start(const StoreService::Options& options) {
    store = std::make_unique<StoreProcess>(planes(), 9, options);
    worker = make_worker(1);
  }
  std::unique_ptr<WorkerProcess> make_worker(int rank, const PageOrigin& origin = test_origin()) {
    auto made = std::make_unique<WorkerProcess>(planes(), rank, origin);
    made->connect(store->control->address());
    return made;
  }
  void expect_store_idle() {
    EXPECT_TRUE(store->eventually([&] {
      const StoreLedger ledger = store->service->ledger();
      return ledger.in_flight == 0 && ledger.pinned == 0;
    }));
  }

  std::shared_ptr<transport::LoopbackNetwork> network = transport::LoopbackNetwork::create();
  std::unique_ptr<StoreProcess> store;
  std::unique_ptr<WorkerProcess> worker;
};

TEST_F(StoreLoopback, PagesComeBackByteForByte) {
  start({.host_bytes = 64 << 20});
  auto pages = test_pages(40, 150'016);  // several batches of gets
  const SpillOutcome spilled = worker->spill(writes(pages));
  EXPECT_EQ(spilled.stored, 40u) << spilled.reason;
  const Restored restored = worker->restore(reads(pages));
  EXPECT_EQ(restored.pages, 40u) << restored.reason;
  for (const TestPage& page : pages) EXPECT_TRUE(page.came_back());

  EXPECT_EQ(worker->spill(writes(pages)).already_present, 40u);
  EXPECT_EQ(worker->spilled("stored"), 40);
  EXPECT_EQ(worker->spilled("already_present"), 40);
  EXPECT_EQ(worker->restored("restored"), 40);
  EXPECT_EQ(worker->metric({"lowkey_kv_restore_seconds_count"}), 1);
  expect_store_idle();
  size_t bytes = 0;
  for (const TestPage& page : pages) bytes += page.bytes();
  EXPECT_EQ(store->ledger().requested, bytes);
  EXPECT_EQ(store->metric({"lowkey_kv_bytes{", "state=\"evictable\""}), store->ledger().evictable);
  EXPECT_EQ(store->metric({"lowkey_kv_pages{", "state=\"evictable\""}), 40);
}

TEST_F(StoreLoopback, ARestoreEndsAtTheFirstMissingPage) {
  start({.host_bytes = 1 << 20});
  auto pages = test_pages(5);
  std::vector<PageWrite> some = writes(pages);
  some.erase(some.begin() + 2);
  ASSERT_EQ(worker->spill(std::move(some)).stored, 4u);
  const Restored restored = worker->restore(reads(pages));
  EXPECT_EQ(restored.pages, 2u);
  EXPECT_EQ(restored.reason, "page 2: not there");
  EXPECT_TRUE(pages[1].came_back());
  EXPECT_TRUE(pages[3].untouched());
  EXPECT_EQ(worker->restored("miss"), 3);
}

TEST_F(StoreLoopback, ABitFlippedOnTheWayInIsAMissAndThePageIsDropped) {
  start({.host_bytes = 1 << 20});
  auto pages = test_pages(3);
  network->inject(TransferFault::kFlipBit, 4);  // page 0 has three slabs: the first of page 1
  ASSERT_EQ(worker->spill(writes(pages)).stored, 3u);
  const Restored restored = worker->restore(reads(pages));
  EXPECT_EQ(restored.pages, 1u);
  EXPECT_NE(restored.reason.find("checksum"), std::string::npos) << restored.reason;
  EXPECT_TRUE(pages[1].untouched()) << "nothing unverified reaches the target";
  EXPECT_EQ(worker->restored("corrupt"), 1);
  EXPECT_EQ(worker->restored("miss"), 1);

  expect_store_idle();
  const SpillOutcome again = worker->spill(writes(pages));
  EXPECT_EQ(again.stored, 1u) << "the store had dropped the corrupt page";
  EXPECT_EQ(worker->restore(reads(pages)).pages, 3u);
}

TEST_F(StoreLoopback, ABitFlippedOnTheWayOutIsAMiss) {
  start({.host_bytes = 1 << 20});
  auto pages = test_pages(3);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 3u);
  network->inject(TransferFault::kFlipBit, 7);
  EXPECT_EQ(worker->restore(reads(pages)).pages, 2u);
  EXPECT_TRUE(pages[0].came_back() && pages[1].came_back());
  EXPECT_FALSE(pages[2].came_back());
}

TEST_F(StoreLoopback, AFailedPutIsCountedAndItsSpaceComesBack) {
  start({.host_bytes = 1 << 20, .reservation_ttl = 300ms});
  auto pages = test_pages(3);
  network->inject(TransferFault::kFail, 2);
  const SpillOutcome spilled = worker->spill(writes(pages));
  EXPECT_EQ(spilled.failed, 3u);
  EXPECT_EQ(worker->spilled("failed"), 3);
  expect_store_idle();
  EXPECT_EQ(store->ledger().used, 0u) << "reservations ran out";
  // A worker may keep its reservations for half of their time. Where it had them too late it put nothing, and
  // gave them back.
  if (spilled.reason.find("injected") != std::string::npos) {
    EXPECT_EQ(store->metric({"lowkey_store_expired_total", "reservation"}), 3);
  }
}

TEST_F(StoreLoopback, AStoreThatDiesInTheMiddleOfAGetIsAMissAtOnce) {
  start({.host_bytes = 1 << 20});
  auto pages = test_pages(3);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 3u);
  network->inject(TransferFault::kNeverCompletes, 2);
  auto restore = worker->start_restore(reads(pages), 1h);
  ASSERT_TRUE(store->eventually([&] { return store->service->ledger().pinned > 0; }));
  network->drop(store->control->address());
  const Restored restored = WorkerProcess::wait(std::move(restore));  // long before its deadline
  EXPECT_EQ(restored.pages, 0u);
  EXPECT_NE(restored.reason, "");
  EXPECT_TRUE(pages[0].untouched());
  EXPECT_EQ(worker->restored("failed"), 3);
  EXPECT_EQ(worker->restore(reads(pages)).reason, "page 0: no store is connected");
  EXPECT_EQ(worker->spill(writes(pages)).failed, 3u);
}

TEST_F(StoreLoopback, AStalledStoreIsAMissByTheDeadline) {
  start({.host_bytes = 1 << 20});
  auto pages = test_pages(2);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 2u);
  network->stall(store->control->address());
  const Restored restored = worker->restore(reads(pages), 50ms);
  EXPECT_EQ(restored.pages, 0u);
  EXPECT_NE(restored.reason.find("deadline"), std::string::npos) << restored.reason;
  auto more = test_pages(2, 4096, 100);
  EXPECT_EQ(worker->spill(writes(more), 50ms).failed, 2u);

  network->resume(store->control->address());  // the late answers are given back
  expect_store_idle();
  EXPECT_EQ(store->ledger().pages_evictable, 2u);
  EXPECT_EQ(worker->restore(reads(pages)).pages, 2u);
}

TEST_F(StoreLoopback, AStalledTransferIsAMissByTheDeadline) {
  start({.host_bytes = 1 << 20});
  auto pages = test_pages(2);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 2u);
  network->inject(TransferFault::kNeverCompletes, 1);
  const auto stuck = [&] {
    return worker->on_io([&] { return worker->control->stats().quarantined_bytes_now; });
  };
  const Deadline deadline = Deadline::in(kPatience);
  do {  // again where the store's answer came too late for any transfer
    EXPECT_EQ(worker->restore(reads(pages), 50ms).pages, 0u);
  } while (stuck() == 0 && !deadline.passed());
  EXPECT_GT(stuck(), 0u);
  expect_store_idle();
  EXPECT_EQ(worker->restore(reads(pages)).pages, 2u);
}

TEST_F(StoreLoopback, AFullStoreDropsWhatDoesNotFitAndEvictsTheOldest) {
  start({.host_bytes = 3 * 6144});
  auto pages = test_pages(4, 4096, 10);  // 6144 bytes each, the first 7168 with its sink
  auto huge = test_pages(1, 3 * 4096);
  EXPECT_EQ(worker->spill(writes(huge)).store_full, 1u);
  EXPECT_EQ(worker->spilled("dropped_store_full"), 1);
  const auto rest = std::span(pages).subspan(1);
  EXPECT_EQ(worker->spill(writes(rest)).stored, 3u);
  auto newer = std::vector{TestPage(99)};
  EXPECT_EQ(worker->spill(writes(newer)).stored, 1u);
  EXPECT_EQ(store->metric({"lowkey_store_level_drops_total"}), 3) << "no page goes while levels can";
  EXPECT_EQ(store->metric({"lowkey_store_evicted_pages_total"}), 0);
  EXPECT_EQ(worker->restore(reads(newer)).pages, 1u);
  EXPECT_EQ(worker->restore(reads(rest.first(1))).pages, 0u) << "its upper level is gone";
  auto newest = std::vector{TestPage(100)};
  EXPECT_EQ(worker->spill(writes(newest)).stored, 1u);
  EXPECT_GT(store->metric({"lowkey_store_evicted_pages_total"}), 0);
  EXPECT_EQ(worker->restore(reads(newest)).pages, 1u);
}

TEST_F(StoreLoopback, ALeaseRunsOutAndThePageMayGo) {
  start({.host_bytes = 6144, .lease_ttl = 50ms});
  auto pages = std::vector{TestPage(1)};
  ASSERT_EQ(worker->spill(writes(pages)).stored, 1u);
  network->inject(TransferFault::kNeverCompletes, 1);
  auto restore = worker->start_restore(reads(pages), 1h);
  ASSERT_TRUE(store->eventually([&] { return store->metric({"lowkey_store_expired_total", "lease"}) == 1; }));
  EXPECT_EQ(store->metric({"lowkey_store_leases"}), 0);
  auto newer = std::vector{TestPage(2)};
  EXPECT_EQ(worker->spill(writes(newer)).stored, 1u) << "in place of the page whose reader is too slow";
  network->drop(store->control->address());
  EXPECT_EQ(WorkerProcess::wait(std::move(restore)).pages, 0u);
}

TEST_F(StoreLoopback, ADeadWorkersReservationsAndLeasesEndAtOnce) {
  start({.host_bytes = 1 << 20, .reservation_ttl = 1h, .lease_ttl = 1h});
  auto pages = test_pages(2);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 2u);
  auto other = make_worker(2);
  network->hold_transfers(other->control->address());
  auto restore = other->start_restore(reads(pages), 1h);
  ASSERT_TRUE(store->eventually([&] { return store->service->ledger().pages_pinned == 2; }));
  auto more = test_pages(2, 4096, 100);
  auto spill = other->start_spill(writes(more), 1h);
  ASSERT_TRUE(store->eventually([&] { return store->service->ledger().pages_in_flight == 2; }));
  network->drop(other->control->address());
  expect_store_idle();
  EXPECT_EQ(WorkerProcess::wait(std::move(spill)).failed, 2u);
  EXPECT_EQ(WorkerProcess::wait(std::move(restore)).pages, 0u);
  EXPECT_EQ(worker->restore(reads(pages)).pages, 2u) << "the other worker goes on";
}

TEST_F(StoreLoopback, PagesOfAnotherModelOrRankAreNotTaken) {
  start({.host_bytes = 1 << 20});
  for (const PageOrigin& wrong : {PageOrigin{{7, 7}, {3, 4}, 1, 2, 2}, PageOrigin{{1, 2}, {7, 7}, 1, 2, 2},
                                  PageOrigin{{1, 2}, {3, 4}, 0, 2, 2}, PageOrigin{{1, 2}, {3, 4}, 1, 4, 2},
                                  PageOrigin{{1, 2}, {3, 4}, 1, 2, 1}}) {
    auto pages = std::vector{TestPage(1, 4096, false, wrong)};
    ASSERT_EQ(worker->spill(writes(pages)).stored, 1u);
    const Restored restored = worker->restore(reads(pages));
    EXPECT_EQ(restored.pages, 0u);
    EXPECT_NE(restored.reason.find("expected"), std::string::npos) << restored.reason;
    expect_store_idle();  // reported corrupt: gone, or the next one would be already_present
  }
  EXPECT_EQ(worker->restored("corrupt"), 5);
}

TEST_F(StoreLoopback, APageOfOtherTokensIsNotBelieved) {
  start({.host_bytes = 1 << 20});
  auto pages = test_pages(3);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 3u);
  auto wanted = reads(pages);
  wanted[1].tokens_hash ^= 1;  // as where identities collide
  const Restored restored = worker->restore(wanted);
  EXPECT_EQ(restored.pages, 1u);
  EXPECT_NE(restored.reason.find("page of tokens"), std::string::npos) << restored.reason;
  EXPECT_EQ(worker->restored("corrupt"), 1);
}

TEST_F(StoreLoopback, AHeaderThatDoesNotFitIsNotCommitted) {
  start({.host_bytes = 1 << 20});
  TestPage damaged(1), sink_missing(2);
  damaged.header.first_token ^= 1;
  sink_missing.header.has_sink = 1;
  sink_missing.header.header_checksum = sink_missing.header.compute_checksum();
  const SpillOutcome spilled = worker->spill({damaged.write(), sink_missing.write(), TestPage(3).write()});
  EXPECT_EQ(spilled.stored, 1u);
  EXPECT_EQ(spilled.failed, 2u);
  EXPECT_EQ(spilled.held, std::vector{TestPage(3).header.identity});
  const SpillOutcome again = worker->spill({TestPage(3).write()});
  EXPECT_EQ(again.already_present, 1u);
  EXPECT_EQ(again.held, spilled.held);
  EXPECT_EQ(store->ledger().pages_evictable, 1u);
  EXPECT_EQ(store->ledger().in_flight, 0u);
}

TEST_F(StoreLoopback, TooMuchAtOnceIsDroppedAndCounted) {
  start({.host_bytes = 4 << 20});
  network->stall(store->control->address());
  std::vector<std::vector<TestPage>> all;
  std::vector<std::future<SpillOutcome>> spills;
  for (size_t i = 0; i < StoreClient::kMaxSpills + 3; ++i) {
    all.push_back({TestPage(100 + i)});
    spills.push_back(worker->start_spill(writes(all.back())));
  }
  EXPECT_EQ(WorkerProcess::wait(std::move(spills.back())).staging_full, 1u);
  spills.pop_back();
  network->resume(store->control->address());
  SpillOutcome sum;
  for (auto& spill : spills) sum += WorkerProcess::wait(std::move(spill));
  EXPECT_EQ(sum.stored, StoreClient::kMaxSpills);
  EXPECT_EQ(sum.staging_full, 2u);
  EXPECT_EQ(worker->spilled("dropped_staging_full"), 3);
}

TEST_F(StoreLoopback, RestoresQueueUpInOrder) {
  start({.host_bytes = 16 << 20});
  std::vector<std::vector<TestPage>> prompts;
  std::vector<std::future<Restored>> restores;
  for (size_t i = 0; i < 8; ++i) {
    prompts.push_back(test_pages(6, 65536, 1000 * i));
    ASSERT_EQ(worker->spill(writes(prompts[i])).stored, 6u);
  }
  for (auto& pages : prompts) restores.push_back(worker->start_restore(reads(pages)));
  for (auto& restore : restores) EXPECT_EQ(WorkerProcess::wait(std::move(restore)).pages, 6u);
  for (const auto& pages : prompts) {
    for (const TestPage& page : pages) EXPECT_TRUE(page.came_back());
  }
}

TEST_F(StoreLoopback, MalformedMessagesCloseThePeerWithTheReason) {
  start({.host_bytes = 1 << 20});
  wire::ReserveRequest short_identity, too_many, no_bytes;
  short_identity.add_pages()->set_identity("short");
  no_bytes.add_pages()->set_identity(std::string(16, 'x'));
  for (int i = 0; i <= kMaxPagesPerMessage; ++i) too_many.add_pages();
  wire::CommitRequest half_header;
  half_header.add_pages()->set_header(std::string(64, 'x'));
  const struct {
    transport::MessageType type;
    std::string body, reason;
  } cases[] = {
      {transport::MessageType::kReserveRequest, "\xff\xff", "ReserveRequest: 2 bytes that are not one"},
      {transport::MessageType::kReserveRequest, short_identity.SerializeAsString(), "identity of 5 bytes"},
      {transport::MessageType::kReserveRequest, no_bytes.SerializeAsString(), "page of 0 slabs and 0 bytes"},
      {transport::MessageType::kReserveRequest, too_many.SerializeAsString(), "4097 pages, at most 4096"},
      {transport::MessageType::kCommitRequest, half_header.SerializeAsString(), "page header of 64 bytes"},
      {transport::MessageType::kStepPlan, "", "not for a store"},
  };
  for (const auto& c : cases) {
    auto peer = std::make_unique<WorkerProcess>(planes(), 5, test_origin());
    const auto connection = peer->connect(store->control->address());
    ASSERT_TRUE(peer->on_io([&] { return connection->send(c.type, c.body).ok(); }));
    EXPECT_TRUE(peer->eventually([&] { return peer->down_reason.find(c.reason) != std::string::npos; }))
        << peer->on_io([&] { return peer->down_reason; });
  }
}

TEST_F(StoreLoopback, AWorkerThatStopsReportsItsRestore) {
  start({.host_bytes = 64 << 20});
  auto pages = test_pages(64, 262'144);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 64u);
  auto restore = worker->start_restore(reads(pages));
  worker->on_io([&] {
    worker->set.reset();
    return 0;
  });
  const Restored restored = WorkerProcess::wait(std::move(restore));
  EXPECT_LE(restored.pages, 64u);
}

TEST_F(StoreLoopback, TwoStoresShareThePagesAndOneMayDie) {
  start({.host_bytes = 16 << 20});
  StoreProcess second(planes(), 10, {.host_bytes = 16 << 20});
  worker->connect(second.control->address());
  auto pages = test_pages(32);
  EXPECT_EQ(worker->spill(writes(pages)).stored, 32u);
  EXPECT_GT(store->ledger().pages_evictable, 4u);
  EXPECT_GT(second.ledger().pages_evictable, 4u);
  EXPECT_EQ(worker->restore(reads(pages)).pages, 32u);
  for (const TestPage& page : pages) EXPECT_TRUE(page.came_back());

  network->drop(second.control->address());
  ASSERT_TRUE(worker->eventually([&] { return worker->set->num_ready() == 1; }));
  EXPECT_LT(worker->restore(reads(pages)).pages, 32u);
  EXPECT_EQ(worker->spill(writes(pages)).failed, 0u) << "the lost pages go to the store that is left";
  EXPECT_EQ(worker->restore(reads(pages)).pages, 32u);
}

// As where a transport is required, and has yet to be told.
TEST_F(StoreLoopback, AStoreIsNotUsedBeforeItIsAdmitted) {
  start({.host_bytes = 16 << 20});
  StoreProcess second(planes(), 10, {.host_bytes = 16 << 20});
  worker->on_io([&] {
    worker->admits = false;
    worker->control->connect(second.control->address(), Deadline::in(kPatience), [](auto) {});
    return 0;
  });
  const auto told = [&] { return worker->control->stats().paths_now.size() == 2; };
  ASSERT_TRUE(worker->eventually(told)) << "its pool is open";
  EXPECT_EQ(worker->on_io([&] { return worker->set->num_ready(); }), 1u);
  auto pages = test_pages(16);
  EXPECT_EQ(worker->spill(writes(pages)).stored, 16u);
  EXPECT_EQ(second.ledger().pages_evictable, 0u);
  worker->on_io([&] {
    worker->set->admit(worker->last_store);
    return 0;
  });
  EXPECT_EQ(worker->on_io([&] { return worker->set->num_ready(); }), 2u);
  EXPECT_EQ(worker->spill(writes(test_pages(16, 4096, 100))).stored, 16u);
  EXPECT_GT(second.ledger().pages_evictable, 0u);
}

// What is under way ends; what is new goes to the others; nobody is let in any more.
TEST_F(StoreLoopback, AStoreLeavesOnceWhatIsUnderWayHasEnded) {
  start({.host_bytes = 16 << 20});
  StoreProcess second(planes(), 10, {.host_bytes = 16 << 20});
  worker->connect(second.control->address());
  auto pages = test_pages(8);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 8u);
  const std::string address = store->control->address();
  network->hold_transfers(address);
  auto restore = worker->start_restore(reads(pages));
  const Deadline deadline = Deadline::in(kPatience);
  while (network->transfers_held(address) == 0 && !deadline.passed()) std::this_thread::yield();
  ASSERT_GT(network->transfers_held(address), 0u);
  std::atomic<bool> left = false;
  store->on_io([&] {
    store->service->leave([&] { left = true; });
    return 0;
  });
  ASSERT_TRUE(worker->eventually([&] { return worker->set->num_ready() == 1; }));
  EXPECT_FALSE(left);
  const auto more = test_pages(16, 4096, 100);
  EXPECT_EQ(worker->spill(writes(more)).stored, 16u);
  const auto pages_of = [](StoreProcess& process) {
    const StoreLedger ledger = process.ledger();
    return ledger.pages_evictable + ledger.pages_pinned;
  };
  EXPECT_EQ(pages_of(second) + pages_of(*store), 24u);
  EXPECT_GE(pages_of(second), 16u) << "all of them";
  network->end_hold(address);
  EXPECT_EQ(WorkerProcess::wait(std::move(restore)).pages, 8u);
  for (const TestPage& page : pages) EXPECT_TRUE(page.came_back());
  EXPECT_TRUE(store->eventually([&] { return left.load(); }));
  WorkerProcess late(planes(), 2, test_origin());
  late.on_io([&] {
    late.control->connect(address, Deadline::in(kPatience), [](auto) {});
    return 0;
  });
  EXPECT_TRUE(
      late.eventually([&] { return late.down_reason.find("the store leaves") != std::string::npos; }));
  EXPECT_EQ(late.on_io([&] { return late.set->num_ready(); }), 0u);
}

TEST(Rendezvous, TheLossOfAStoreMovesOnlyItsPages) {
  const int all[] = {7, 8, 9}, fewer[] = {9, 7};
  std::array<int, 3> share{};
  for (uint64_t n = 0; n < 3000; ++n) {
    const Hash128 identity = hash128(std::to_string(n));
    const int before = all[rendezvous(identity, all)];
    const int after = fewer[rendezvous(identity, fewer)];
    EXPECT_TRUE(after == before || before == 8);
    ++share[before - 7];
  }
  for (const int pages : share) EXPECT_NEAR(pages, 1000, 150);
}

}  // namespace
}  // namespace lowkey::kvstore
