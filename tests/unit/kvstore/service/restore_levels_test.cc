// Restores of chosen levels, with and without gaps, from stores that are honest, incomplete or lying; and
// what is bounded on the way.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/unit/kvstore/service/scripted_store.h"
#include "transport/loopback/loopback_network.h"

namespace lowkey::kvstore {
namespace {

using namespace std::chrono_literals;
using transport::TransferFault;

constexpr uint32_t kLevel0 = 1, kLevel1 = 2, kSink = 4;  // of a TestPage

class RestoreLevels : public testing::Test {
 protected:
  MakePlanes planes() {
    return [network = network](auto& io, auto options,
                               auto handlers) -> decltype(MakePlanes()(io, options, handlers)) {
      LOWKEY_ASSIGN(transport, network->make_transport(io, std::move(options), std::move(handlers)));
      return std::pair(std::move(transport.control), std::move(transport.data));
    };
  }
  void start_worker(const std::string& address, SpillFormat format = {}) {
    worker = std::make_unique<WorkerProcess>(planes(), 1, test_origin(), std::move(format));
    worker->connect(address);
  }
  void start_honest(SpillFormat format = {}) {
    honest = std::make_unique<StoreProcess>(planes(), 9, StoreService::Options{.host_bytes = 64 << 20});
    start_worker(honest->control->address(), std::move(format));
  }
  // A store that holds `pages` and finds those for which `change` does not clear the header.
  void start_scripted(std::span<const TestPage> pages,
                      std::function<void(size_t index, wire::FoundPage&)> change = {}) {
    scripted = std::make_unique<ScriptedStore>(planes(), 9, 16 << 20);
    scripted->on_lookup = [this, pages, change](const wire::LookupRequest& request) {
      lookups.push_back(request);
      wire::LookupReply reply;
      size_t at = 0;
      for (size_t i = 0; i < pages.size(); ++i) {
        wire::FoundPage found = scripted->hold(pages[i].write(), at, 100 + i);
        at += pages[i].bytes();
        found.set_index(static_cast<uint32_t>(i));
        if (change) change(i, found);
        if (!found.header().empty()) *reply.add_pages() = found;
      }
      return reply;
    };
    start_worker(scripted->control->address());
  }
  double in_flight(const char* direction) const {
    return worker->metric({std::string("lowkey_") + direction + "_bytes_in_flight"});
  }
  std::vector<uint64_t> corrupt() {
    return scripted->on_io([&] {
      std::vector<uint64_t> leases;
      for (const auto& release : scripted->releases)
        leases.insert(leases.end(), release.corrupt().begin(), release.corrupt().end());
      return leases;
    });
  }

  std::shared_ptr<transport::LoopbackNetwork> network = transport::LoopbackNetwork::create();
  std::unique_ptr<StoreProcess> honest;
  std::unique_ptr<ScriptedStore> scripted;
  std::unique_ptr<WorkerProcess> worker;
  std::vector<wire::LookupRequest> lookups;  // the scripted store's I/O thread
};

std::vector<PageRead> reads(std::span<TestPage> pages, uint32_t slabs) {
  std::vector<PageRead> result;
  for (size_t i = 0; i < pages.size(); ++i) result.push_back(pages[i].read(i == 0 ? slabs : slabs & ~kSink));
  return result;
}

TEST_F(RestoreLevels, LevelsComeOneAfterTheOther) {
  start_honest();
  auto pages = test_pages(5);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 5u);
  const Restored first = worker->restore(reads(pages, kLevel0 | kSink));
  EXPECT_EQ(first.pages, 5u) << first.reason;
  EXPECT_EQ(first.bytes, 5 * 4096u + 1024);
  EXPECT_GT(first.seconds, 0);
  EXPECT_FALSE(first.lossy);
  for (const TestPage& page : pages) EXPECT_TRUE(page.came_back(0) && !page.came_back(1));

  std::vector<PageRead> rest;  // not through reads(), which would wipe what is there
  for (TestPage& page : pages) rest.push_back(page.wanting(kLevel1));
  const Restored second = worker->restore(std::move(rest));
  EXPECT_EQ(second.pages, 5u) << second.reason;
  EXPECT_EQ(second.bytes, 5 * 2048u);
  for (const TestPage& page : pages) EXPECT_TRUE(page.came_back());
}

TEST_F(RestoreLevels, WithGapsEveryPageIsForItself) {
  auto pages = test_pages(6);
  start_scripted(pages, [](size_t i, wire::FoundPage& found) {
    if (i == 1 || i == 4) found.clear_header();
    if (i == 2) found.set_tier(static_cast<uint32_t>(PageSource::kDisk));
  });
  const Restored restored =
      worker->restore(reads(pages, kLevel0 | kLevel1 | kSink), kPatience, {.gaps = true});
  using enum PageSource;
  EXPECT_EQ(restored.sources, (std::vector{kHost, kNone, kDisk, kHost, kNone, kHost}));
  EXPECT_EQ(restored.pages, 1u);
  EXPECT_EQ(restored.reason, "page 1: not there");
  for (const size_t i : {0, 2, 3, 5}) EXPECT_TRUE(pages[i].came_back()) << i;
  EXPECT_TRUE(pages[1].untouched() && pages[4].untouched());
  EXPECT_EQ(worker->restored("restored"), 4);
  EXPECT_EQ(worker->restored("miss"), 2);
  ASSERT_EQ(lookups.size(), 1u);
  EXPECT_EQ(lookups[0].slabs(), kLevel0 | kLevel1 | kSink);
  EXPECT_TRUE(lookups[0].gaps());
}

TEST_F(RestoreLevels, APageWithoutAWantedLevelIsAMiss) {
  auto pages = test_pages(4);
  start_scripted(pages, [](size_t i, wire::FoundPage& found) {
    if (i == 1) found.set_slab_bytes(1, 0);  // the store gave up its upper level
  });
  const Restored coarse = worker->restore(reads(pages, kLevel0 | kSink));
  EXPECT_EQ(coarse.pages, 4u) << "what is not wanted may be missing: " << coarse.reason;
  const Restored run = worker->restore(reads(pages, kLevel0 | kLevel1 | kSink));
  EXPECT_EQ(run.pages, 1u);
  EXPECT_EQ(run.reason, "page 1: slab 1 is not there");
  const Restored gaps = worker->restore(reads(pages, kLevel0 | kLevel1 | kSink), kPatience, {.gaps = true});
  EXPECT_EQ(std::ranges::count(gaps.sources, PageSource::kHost), 3);
  EXPECT_TRUE(pages[3].came_back());
  EXPECT_TRUE(corrupt().empty()) << "a page that became shorter is not a damaged one";
}

// A bit flipped in any slab of any page, and nothing else is lost.
TEST_F(RestoreLevels, ALyingStoreLosesThePageItLiesAbout) {
  auto pages = test_pages(3);
  start_scripted(pages);
  const auto whole = [&] {
    return worker->restore(reads(pages, kLevel0 | kLevel1 | kSink), kPatience, {.gaps = true});
  };
  ASSERT_EQ(whole().pages, 3u);
  const size_t page_of_slab[] = {0, 0, 0, 1, 1, 2, 2};
  for (uint64_t slab = 1; slab <= std::size(page_of_slab); ++slab) {
    network->inject(TransferFault::kFlipBit, slab);
    const size_t lost = page_of_slab[slab - 1];
    const Restored restored = whole();
    EXPECT_EQ(restored.reason, fmt::format("page {}: slab checksum does not match", lost));
    for (size_t i = 0; i < pages.size(); ++i) {
      EXPECT_EQ(restored.sources[i] == PageSource::kHost, i != lost);
      EXPECT_EQ(pages[i].came_back(), i != lost);
    }
    ASSERT_TRUE(scripted->eventually([&] { return scripted->releases.size() == slab + 1; }));
    EXPECT_EQ(corrupt().back(), 100 + lost);
  }
  EXPECT_EQ(worker->restored("corrupt"), std::size(page_of_slab));
}

TEST_F(RestoreLevels, AnswersThatDoNotFitAreNotBelieved) {
  auto pages = test_pages(3);
  std::function<void(size_t, wire::FoundPage&)> change;
  start_scripted(pages, [&](size_t i, wire::FoundPage& found) { change(i, found); });
  const struct {
    std::function<void(wire::FoundPage&)> change;  // of page 1
    const char* reason;
  } cases[] = {
      {[](auto& found) { found.set_slab_bytes(0, 4095); }, "page 1: slabs of another size"},
      {[](auto& found) { found.set_offsets(0, (16 << 20) - 1); },
       "page 1: slabs outside of the store's pool"},
      {[](auto& found) { found.set_offsets(0, UINT64_MAX); }, "page 1: slabs outside of the store's pool"},
      {[](auto& found) { found.clear_offsets(); }, "page 1: another number of slabs"},
      {[](auto& found) { found.set_header("short"); }, "page 1: page header of 5 bytes"},
      {[](auto& found) { found.set_index(0); }, "page 0: store found page 0 of 3"},
      {[](auto& found) { found.set_index(7); }, "page 0: store found page 7 of 3"},
  };
  for (const auto& c : cases) {
    change = [&](size_t i, wire::FoundPage& found) {
      if (i == 1) c.change(found);
    };
    const Restored restored =
        worker->restore(reads(pages, kLevel0 | kLevel1 | kSink), kPatience, {.gaps = true});
    EXPECT_EQ(restored.reason.rfind(c.reason, 0), 0u) << restored.reason;
    EXPECT_EQ(restored.sources[1], PageSource::kNone);
  }
}

TEST_F(RestoreLevels, OnlyWhatTheStoreLostIsWrittenAgain) {
  start_scripted({});
  TestPage page(1);
  scripted->on_reserve = [](const wire::ReserveRequest&) {
    wire::ReserveReply reply;
    wire::PageGrant& grant = *reply.add_pages();
    grant.set_granted(true);
    grant.set_already_present(true);
    grant.set_reservation(5);
    for (const uint64_t offset : {UINT64_MAX, uint64_t{640}, uint64_t{0}, uint64_t{0}})
      grant.add_offsets(offset);
    return reply;
  };
  EXPECT_EQ(worker->spill({page.write()}).stored, 1u);
  const auto [before, level1] = scripted->on_io([&] {
    const auto pool = scripted->pool();
    return std::pair(std::ranges::count(pool.first(640), std::byte{0}),
                     std::ranges::equal(pool.subspan(640, 2048), page.write().slabs[1]));
  });
  EXPECT_EQ(before, 640) << "level 0 is there already";
  EXPECT_TRUE(level1);
  EXPECT_EQ(scripted->on_io([&] { return scripted->commits.at(0).pages(0).header(); }),
            page_header_bytes(page.header));
}

TEST_F(RestoreLevels, OnlyTheSpilledLevelsAreStored) {
  start_honest({.levels = 1});
  auto pages = test_pages(3);
  ASSERT_EQ(worker->spill(writes(pages)).stored, 3u);
  EXPECT_EQ(honest->ledger().requested, 3 * 4096u + 1024);
  EXPECT_EQ(worker->restore(reads(pages, kLevel0 | kSink)).pages, 3u);
  EXPECT_TRUE(pages[2].came_back(0));
  EXPECT_EQ(worker->restore(reads(pages, kLevel0 | kLevel1 | kSink)).pages, 0u);
}

TEST_F(RestoreLevels, ChecksumsMayBeLeftToTheSpill) {
  start_honest();
  auto pages = test_pages(3);
  auto bare = writes(pages);
  for (PageWrite& page : bare) {
    page.header.checksums = {};
    page.header.header_checksum = 0;
    page.checksummed = false;
  }
  const SpillOutcome outcome = worker->spill(std::move(bare));
  EXPECT_EQ(outcome.stored, 3u);
  EXPECT_EQ(outcome.prepared_bytes, 3 * 6144u + 1024);
  EXPECT_GT(outcome.prepare_seconds, 0);
  EXPECT_EQ(worker->restore(reads(pages, kLevel0 | kLevel1 | kSink)).pages, 3u);
  for (const TestPage& page : pages) EXPECT_TRUE(page.came_back());
}

TEST_F(RestoreLevels, WhatIsOnItsWayIsCountedAndBounded) {
  start_honest();
  auto pages = test_pages(40, 1 << 20);
  ASSERT_EQ(worker->spill(writes(std::span(pages).first(20))).stored, 20u);
  EXPECT_EQ(in_flight("spill"), 0);
  network->stall(honest->control->address());
  auto spill = worker->start_spill(writes(std::span(pages).subspan(20, 3)));
  EXPECT_TRUE(worker->eventually([&] { return in_flight("spill") == 3 * 1.5 * (1 << 20); }));
  network->resume(honest->control->address());
  EXPECT_EQ(WorkerProcess::wait(std::move(spill)).stored, 3u);
  EXPECT_TRUE(worker->eventually([&] { return in_flight("spill") == 0; }));

  // Gets that never complete keep their buffers, however many restores want one.
  for (int nth = 1; nth <= 100; ++nth) network->inject(TransferFault::kNeverCompletes, nth);
  double stuck = 0;
  const Deadline deadline = Deadline::in(kPatience);
  do {  // again where the store's answers came too late for any get
    std::vector<std::future<Restored>> restores;
    for (size_t i = 0; i < 4; ++i)
      restores.push_back(worker->start_restore(reads(std::span(pages).subspan(5 * i, 5), kLevel0), 200ms));
    for (auto& restore : restores) EXPECT_EQ(WorkerProcess::wait(std::move(restore)).pages, 0u);
    stuck = in_flight("restore");
  } while (stuck == 0 && !deadline.passed());
  EXPECT_GT(stuck, 0);
  EXPECT_LE(stuck, 8 << 20);
  network->drop(honest->control->address());
  EXPECT_TRUE(worker->eventually([&] { return in_flight("restore") == 0; }));
}

// A fetcher of `batches` batches that says when it was its turn.
class Turns final : public FetchQueue::Fetcher {
 public:
  Turns(std::string name, int batches, std::vector<std::string>& order)
      : name_(std::move(name)), left_(batches), order_(order) {}
  size_t next_batch(size_t) override { return left_ > 0 ? 1 : 0; }
  void fetch(std::shared_ptr<TransferBuffer> buffer) override {
    --left_;
    order_.push_back(name_);
    buffers.push_back(std::move(buffer));
  }
  std::vector<std::shared_ptr<TransferBuffer>> buffers;

 private:
  const std::string name_;
  int left_;
  std::vector<std::string>& order_;
};

TEST(FetchQueue, Level0NeverWaitsForTheRestOfUpperLevels) {
  boost::asio::io_context io;
  monitoring::Metrics metrics({{"role", "worker"}, {"rank", "1"}});
  const auto in_flight = std::make_shared<InFlight>(metrics, monitoring::Metric::kRestoreBytesInFlight);
  const auto queue = FetchQueue::create(io, in_flight);
  std::vector<std::string> order;
  const auto upper = std::make_shared<Turns>("upper", 6, order),
             level0 = std::make_shared<Turns>("0", 2, order),
             later = std::make_shared<Turns>("0 later", 1, order);
  queue->enter(2, upper);
  queue->enter(0, level0);
  queue->enter(0, later);
  EXPECT_EQ(order, std::vector<std::string>(4, "upper")) << "as many as there are buffers";
  upper->buffers.clear();
  io.poll();
  EXPECT_EQ(std::vector(order.begin() + 4, order.end()),
            (std::vector<std::string>{"0", "0", "0 later", "upper"}));
  level0->buffers.clear();
  io.restart();
  io.poll();
  EXPECT_EQ(order.back(), "upper");
  EXPECT_EQ(order.size(), 9u);
}

}  // namespace
}  // namespace lowkey::kvstore
