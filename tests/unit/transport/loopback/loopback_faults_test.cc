// The faults a LoopbackNetwork can inject, and what the planes make of them.
#include <gtest/gtest.h>

#include "tests/unit/transport/node.h"
#include "transport/loopback/loopback_network.h"

namespace lowkey::transport {
namespace {

using namespace std::chrono_literals;

class LoopbackFaults : public ::testing::Test {
 protected:
  std::unique_ptr<Node> node(const ControlOptions& options) {
    const auto make = [this](boost::asio::io_context& io, ControlOptions o,
                             ControlHandlers h) -> decltype(Node::Make()(io, o, h)) {
      LOWKEY_ASSIGN(transport, network_->make_transport(io, std::move(o), std::move(h)));
      return std::pair(std::move(transport.control), std::move(transport.data));
    };
    return std::make_unique<Node>(make, options);
  }
  void SetUp() override {
    auto options = test_options(Role::kStore, 3);
    server_ = node(options);
    options.self.role = Role::kWorker;
    client_ = node(options);
    auto connected = client_->connect(server_->control->address());
    ASSERT_TRUE(connected.ok());
    connection_ = *connected;
    ASSERT_TRUE(server_->wait_ups(1));
    pool_ = *server_->on_io([&] { return server_->data->allocate(1 << 20); });
    remote_ = *client_->on_io([&] { return client_->data->open(connection_, "", pool_->remote_handle()); });
  }

  // Waits until so many transfers to the server are held.
  bool held(size_t expected) {
    const std::string store = server_->control->address();
    const Deadline deadline = Deadline::in(kPatience);
    while (network_->transfers_held(store) != expected && !deadline.passed()) std::this_thread::yield();
    return network_->transfers_held(store) == expected;
  }

  std::shared_ptr<LoopbackNetwork> network_ = LoopbackNetwork::create();
  std::unique_ptr<Node> server_, client_;
  ConnectionPtr connection_;
  std::shared_ptr<MemoryPool> pool_;
  std::shared_ptr<RemotePool> remote_;
};

TEST_F(LoopbackFaults, DropEndsTheConnectionOnceOnBothSides) {
  network_->drop(server_->control->address());
  network_->drop(server_->control->address());
  ASSERT_TRUE(client_->wait_downs(1));
  ASSERT_TRUE(server_->wait_downs(1));
  EXPECT_EQ(client_->downs()[0].error.code, Code::kUnavailable);
  EXPECT_FALSE(client_->send(connection_, MessageType::kSubmit, "").ok());
  client_->stop();
  server_->stop();
  EXPECT_EQ(client_->downs().size(), 1u);
  EXPECT_EQ(server_->downs().size(), 1u);
}

TEST_F(LoopbackFaults, AStalledPeerIsNoticedByItsSilence) {
  auto options = test_options(Role::kWorker, 5);
  options.heartbeat_interval = 40ms;
  options.missed_heartbeats = 5;
  const auto impatient = node(options);
  ASSERT_TRUE(impatient->connect(server_->control->address()).ok());
  network_->stall(server_->control->address());
  ASSERT_TRUE(impatient->wait_downs(1));
  EXPECT_EQ(impatient->downs()[0].error.message, "no sign of life for 0.2 s");
  EXPECT_GE(impatient->stats().heartbeats_missed, 5u);
  EXPECT_EQ(impatient->stats().peers_silent, 1u);
}

// Silence that is long in the product, too, is noticed within the five seconds that its users are promised.
TEST(Heartbeats, AStoppedPeerIsNoticedWithinFiveSeconds) {
  const ControlOptions product;
  EXPECT_LE(seconds(product.heartbeat_interval) * (product.missed_heartbeats + 1), 5);
}

TEST_F(LoopbackFaults, HeartbeatsAreAnswered) {
  const Deadline deadline = Deadline::in(kPatience);
  // The round trip is known only after a beat was answered.
  while (client_->stats().heartbeat_round_trip_seconds == 0 && !deadline.passed()) std::this_thread::yield();
  EXPECT_GT(client_->stats().heartbeat_round_trip_seconds, 0);
}

TEST_F(LoopbackFaults, HeldMessagesArriveInOrderAfterResume) {
  auto options = test_options(Role::kStore, 4);
  auto server = node(options);
  auto client = node(test_options());
  auto connection = client->connect(server->control->address());
  ASSERT_TRUE(connection.ok());
  network_->stall(server->control->address());
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(client->send(*connection, MessageType::kSubmit, std::to_string(i)).ok());
  }
  EXPECT_GT(client->stats().message_bytes_in_flight_now, 0u);
  EXPECT_TRUE(server->messages().empty());
  network_->resume(server->control->address());
  ASSERT_TRUE(server->wait_messages(100));
  for (int i = 0; i < 100; ++i) EXPECT_EQ(server->messages()[i].body, std::to_string(i));
}

TEST_F(LoopbackFaults, TheNthTransferFails) {
  network_->inject(TransferFault::kFail, 2);
  std::vector<std::byte> local(4096);
  EXPECT_TRUE(client_->put(remote_, {{local, 0}}).ok());
  const Status failed = client_->put(remote_, {{local, 0}});
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().message, "injected failure");
  EXPECT_TRUE(client_->put(remote_, {{local, 0}}).ok());
  const TransferStats stats = client_->stats().transfers.at("loopback");
  EXPECT_EQ(stats.failed_puts + stats.failed_gets, 1u);
}

TEST_F(LoopbackFaults, AFlippedBitArrivesAsSuccess) {
  std::vector<std::byte> local(4096);
  network_->inject(TransferFault::kFlipBit, 1);
  ASSERT_TRUE(client_->get(remote_, {{local, 0}}).ok());
  EXPECT_EQ(local[2048], std::byte{0x10});
}

TEST_F(LoopbackFaults, AHangingTransferEndsAtItsDeadlineAndStaysQuarantined) {
  auto local = std::make_shared<std::vector<std::byte>>(4096);
  network_->inject(TransferFault::kNeverCompletes, 1);
  const TimePoint start = Clock::now();
  const Status status = client_->get(remote_, {{*local, 0}}, 100ms, local);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, Code::kDeadlineExceeded);
  EXPECT_GE(seconds(Clock::now() - start), 0.1);
  EXPECT_EQ(client_->stats().quarantined_bytes_now, 4096u);
  EXPECT_GT(local.use_count(), 1);
  network_->drop(server_->control->address());
  ASSERT_TRUE(client_->wait_downs(1));
  EXPECT_EQ(client_->stats().quarantined_bytes_now, 0u);
  EXPECT_EQ(local.use_count(), 1);
}

TEST_F(LoopbackFaults, APeersDeathFailsItsTransfersBeforeTheirDeadline) {
  std::vector<std::byte> local(4096);
  network_->inject(TransferFault::kNeverCompletes, 1);
  auto answer = std::async(std::launch::async, [&] { return client_->get(remote_, {{local, 0}}, 60s); });
  const Deadline deadline = Deadline::in(kPatience);
  network_->drop(server_->control->address());
  ASSERT_EQ(answer.wait_until(deadline.at()), std::future_status::ready);
  const Status status = answer.get();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, Code::kUnavailable);
}

std::vector<Transfer> pieces(std::vector<std::byte>& local, size_t count) {
  const size_t bytes = local.size() / count;
  std::vector<Transfer> batch;
  for (size_t i = 0; i < count; ++i) batch.push_back({std::span(local).subspan(i * bytes, bytes), i * bytes});
  return batch;
}

TEST_F(LoopbackFaults, ASlowLinkTakesItsTimeAndKeepsTheBytes) {
  network_->slow(server_->control->address(), {.latency = 10ms, .bytes_per_second = 4e6});
  std::vector<std::byte> local(400'000, std::byte{7}), back(local.size());
  TimePoint begin = Clock::now();
  ASSERT_TRUE(client_->put(remote_, pieces(local, 4)).ok());
  EXPECT_GE(Clock::now() - begin, 110ms);
  begin = Clock::now();
  ASSERT_TRUE(client_->get(remote_, pieces(back, 4)).ok());
  EXPECT_GE(Clock::now() - begin, 110ms);
  EXPECT_EQ(back, local);
  network_->slow(server_->control->address(), {});
  EXPECT_TRUE(client_->get(remote_, pieces(back, 4)).ok());
}

TEST_F(LoopbackFaults, MessagesOverASlowLinkKeepTheirOrder) {
  network_->slow(client_->control->address(), {.latency = 20ms});
  const TimePoint begin = Clock::now();
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(client_->send(connection_, MessageType::kSubmit, std::to_string(i)).ok());
    if (i == 50) network_->slow(client_->control->address(), {});  // those on the way are not overtaken
  }
  ASSERT_TRUE(server_->wait_messages(100));
  EXPECT_GE(Clock::now() - begin, 20ms);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(server_->messages()[i].body, std::to_string(i));
}

// A message whose time has come while its receiver was busy is not overtaken by one that takes no time.
TEST_F(LoopbackFaults, ABusyReceiverGetsMessagesInTheirOrder) {
  network_->slow(client_->control->address(), {.latency = 20ms});
  std::promise<void> free;
  boost::asio::post(server_->io(), [freed = free.get_future().share()] { freed.wait(); });
  ASSERT_TRUE(client_->send(connection_, MessageType::kSubmit, "first").ok());
  const Deadline due = Deadline::in(30ms);
  while (!due.passed()) std::this_thread::yield();
  network_->slow(client_->control->address(), {});
  ASSERT_TRUE(client_->send(connection_, MessageType::kSubmit, "second").ok());
  free.set_value();
  ASSERT_TRUE(server_->wait_messages(2));
  EXPECT_EQ(server_->messages()[0].body, "first");
}

TEST_F(LoopbackFaults, HeldTransfersLandOneByOne) {
  network_->hold_transfers(server_->control->address());
  std::vector<std::byte> local(3 * 4096, std::byte{7});
  auto answer = std::async(std::launch::async, [&] { return client_->put(remote_, pieces(local, 3), 60s); });
  const std::string store = server_->control->address();
  ASSERT_TRUE(held(3));
  network_->let_through(store, 2);
  client_->stats();  // a turn of the loop
  EXPECT_TRUE(held(1));
  EXPECT_EQ(pool_->bytes()[0], std::byte{7});
  EXPECT_EQ(pool_->bytes()[2 * 4096 - 1], std::byte{7});
  EXPECT_EQ(pool_->bytes()[2 * 4096], std::byte{0});
  EXPECT_EQ(answer.wait_for(0s), std::future_status::timeout);
  network_->end_hold(store);
  EXPECT_TRUE(answer.get().ok());
  EXPECT_EQ(pool_->bytes()[2 * 4096], std::byte{7});
  EXPECT_TRUE(client_->put(remote_, pieces(local, 3)).ok());
}

TEST_F(LoopbackFaults, WhatIsOnItsWayIsBoundedAndBatchesTakeTurns) {
  const std::string store = server_->control->address();
  network_->hold_transfers(store);
  const auto local = std::make_shared<std::vector<std::byte>>(1 << 20);
  std::vector<std::string> ended;  // I/O thread
  const auto put = [&](const std::string& name, size_t transfers, Duration patience = 60s) {
    client_->on_io([&] {
      client_->data->put(remote_, Node::Transfers(transfers, {*local, 0}), Deadline::in(patience), local,
                         [&ended, name](const Status&) { ended.push_back(name); });
      return 0;
    });
  };
  const auto has_ended = [&](const std::vector<std::string>& expected) {
    const Deadline deadline = Deadline::in(kPatience);
    const auto so = [&] { return client_->on_io([&] { return ended == expected; }); };
    while (!so() && !deadline.passed()) std::this_thread::yield();
    return so();
  };
  put("large", 20);
  ASSERT_TRUE(held(8)) << "MiB";
  put("late", 1, 10ms);
  ASSERT_TRUE(has_ended({"late"})) << "it has waited for its turn";
  put("small", 2);
  client_->stats();  // a turn of the loop: it stands in line
  network_->let_through(store, 8);
  ASSERT_TRUE(held(8));
  network_->let_through(store, 8);
  EXPECT_TRUE(has_ended({"late", "small"}));
  ASSERT_TRUE(held(6));
  network_->end_hold(store);
  EXPECT_TRUE(has_ended({"late", "small", "large"}));
  EXPECT_EQ(client_->stats().quarantined_bytes_now, 0u);
  EXPECT_EQ(local.use_count(), 1);
}

TEST_F(LoopbackFaults, AHeldTransferLandsInQuarantineAfterItsDeadline) {
  const std::string store = server_->control->address();
  network_->hold_transfers(store);
  auto local = std::make_shared<std::vector<std::byte>>(4096);
  pool_->bytes()[0] = std::byte{9};
  const Status status = client_->get(remote_, {{*local, 0}}, 50ms, local);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, Code::kDeadlineExceeded);
  EXPECT_EQ(client_->stats().quarantined_bytes_now, 4096u);
  network_->let_through(store, 1);
  EXPECT_EQ(client_->stats().quarantined_bytes_now, 0u);
  EXPECT_EQ((*local)[0], std::byte{9}) << "too late, but into memory that was kept for it";
  EXPECT_EQ(local.use_count(), 1);
}

TEST_F(LoopbackFaults, ALinkCutInTheMiddleOfABatch) {
  network_->inject(TransferFault::kCutLink, 3);
  auto local = std::make_shared<std::vector<std::byte>>(4 * 4096, std::byte{7});
  const Status status = client_->put(remote_, pieces(*local, 4), 60s, local);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, Code::kUnavailable);
  ASSERT_TRUE(client_->wait_downs(1));
  ASSERT_TRUE(server_->wait_downs(1));
  const auto landed = [&](size_t at) { return pool_->bytes()[at] == std::byte{7}; };
  EXPECT_TRUE(landed(2 * 4096 - 1));
  EXPECT_TRUE(landed(2 * 4096 + 2047));  // torn in its middle
  EXPECT_FALSE(landed(2 * 4096 + 2048));
  EXPECT_FALSE(landed(3 * 4096));
  client_->stats();
  EXPECT_EQ(client_->stats().quarantined_bytes_now, 0u);
  EXPECT_EQ(local.use_count(), 1);
  EXPECT_TRUE(client_->connect(server_->control->address()).ok()) << "the processes live";
}

}  // namespace
}  // namespace lowkey::transport
