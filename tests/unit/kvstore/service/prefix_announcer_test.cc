#include "kvstore/service/prefix_announcer.h"

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <set>

#include "kvstore/service/page_io.h"
#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::kvstore {
namespace {

using std::chrono::milliseconds;

// The coordinator's end: keeps what it is told, and takes nothing while `refuses`.
class Coordinator : public transport::ControlConnection {
 public:
  const transport::PeerInfo& peer() const override { return peer_; }
  uint64_t id() const override { return 1; }
  void close(const std::string&) override {}
  Status send(transport::MessageType type, std::string body) override {
    EXPECT_EQ(type, transport::MessageType::kPrefixEvents);
    if (refuses) {
      ++refused;
      return Error{Code::kResourceExhausted, "too much in flight"};
    }
    EXPECT_LT(body.size(), 1u << 20);
    wire::PrefixEvents events;
    EXPECT_TRUE(events.ParseFromString(body));
    if (events.reset()) known.clear();
    resets += events.reset();
    ++messages;
    for (size_t at = 0; at < events.added().size(); at += 16)
      known.insert(*parse_hash128(events.added().substr(at, 16)));
    for (size_t at = 0; at < events.removed().size(); at += 16)
      known.erase(*parse_hash128(events.removed().substr(at, 16)));
    return {};
  }

  bool refuses = false;
  int resets = 0, messages = 0, refused = 0;
  std::set<Hash128> known;

 private:
  transport::PeerInfo peer_;
};

class PrefixAnnouncerTest : public ::testing::Test {
 protected:
  void run() {
    io.restart();
    io.run_for(std::chrono::seconds(20));  // ends as soon as there is nothing to wait for
  }

  boost::asio::io_context io;
  monitoring::Metrics metrics{{{"role", "store"}, {"rank", "0"}}};
  std::shared_ptr<Coordinator> coordinator = std::make_shared<Coordinator>();
  PrefixAnnouncer announcer{io, metrics, milliseconds(1), milliseconds(1)};
};

constexpr auto kMemory = PrefixAnnouncer::kMemory, kDisk = PrefixAnnouncer::kDisk;

TEST_F(PrefixAnnouncerTest, APageIsHeldAsLongAsAnyTierHasIt) {
  announcer.changed({1, 1}, kMemory, true);
  announcer.connect(coordinator);
  run();
  EXPECT_EQ(coordinator->known, (std::set<Hash128>{{1, 1}}));
  announcer.changed({1, 1}, kDisk, true);
  announcer.changed({1, 1}, kMemory, false);
  announcer.changed({2, 2}, kMemory, true);
  announcer.changed({2, 2}, kMemory, false);
  run();
  EXPECT_EQ(coordinator->messages, 1) << "nothing has changed for it";
  announcer.changed({1, 1}, kDisk, false);
  announcer.changed({3, 3}, kDisk, true);
  run();
  EXPECT_EQ(coordinator->known, (std::set<Hash128>{{3, 3}}));
  EXPECT_EQ(coordinator->messages, 2) << "both in one message";
  EXPECT_EQ(announcer.num_held(), 1u);
}

TEST_F(PrefixAnnouncerTest, MoreChangesThanTheBoundAreToldAnew) {
  announcer.connect(coordinator);
  run();
  constexpr uint64_t kMany = PrefixAnnouncer::kMaxPending + 1000;
  for (uint64_t n = 0; n < kMany; ++n) announcer.changed({n, 1}, kMemory, true);
  run();
  EXPECT_EQ(coordinator->known.size(), kMany);
  EXPECT_EQ(coordinator->resets, 2);
  EXPECT_GT(coordinator->messages, 2) << "in parts";
}

TEST_F(PrefixAnnouncerTest, NoMoreThanAnIndexTakesIsToldAtOnce) {
  PrefixAnnouncer bounded{io, metrics, milliseconds(1), milliseconds(1), 100};
  for (uint64_t n = 0; n < 150; ++n) bounded.changed({n, 1}, kMemory, true);
  bounded.connect(coordinator);
  run();
  EXPECT_EQ(coordinator->known.size(), 100u);
  for (uint64_t n = 0; n < 150; ++n) bounded.changed({n, 1}, kMemory, false);
  bounded.changed({500, 1}, kMemory, true);
  run();
  EXPECT_EQ(coordinator->known, (std::set<Hash128>{{500, 1}}));
  EXPECT_EQ(bounded.num_held(), 1u);
}

TEST_F(PrefixAnnouncerTest, AMessageThatCannotBeSentIsNotLost) {
  announcer.connect(coordinator);
  run();
  coordinator->refuses = true;
  announcer.changed({1, 1}, kMemory, true);
  announcer.changed({2, 2}, kMemory, true);
  io.restart();
  while (coordinator->refused < 3) ASSERT_GT(io.run_one_for(std::chrono::seconds(20)), 0u);
  EXPECT_TRUE(coordinator->known.empty());
  announcer.changed({2, 2}, kMemory, false);
  coordinator->refuses = false;
  run();
  EXPECT_EQ(coordinator->known, (std::set<Hash128>{{1, 1}}));
  announcer.connect(nullptr);
  announcer.changed({4, 4}, kMemory, true);
  run();
  EXPECT_FALSE(coordinator->known.contains({4, 4})) << "nobody to tell";
}

}  // namespace
}  // namespace lowkey::kvstore
