// The contract of control_plane.h, held against every implementation.
#include <gtest/gtest.h>

#include "tests/unit/transport/kinds.h"
#include "transport/core/handshake.h"
#include "transport/core/session_plane.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::transport {
namespace {

using namespace std::chrono_literals;

// Lets everybody in who knows the secret; what follows is up to the test.
class RawServer {
 public:
  template <class Kind>
  explicit RawServer(Kind& kind) : work_(io_.get_executor()), links_(kind.raw_links(io_)) {
    links_->listen([this](std::shared_ptr<Link> link) { accept(std::move(link)); });
    thread_ = std::thread([this] { io_.run(); });
  }
  ~RawServer() {
    std::promise<void> closed;
    boost::asio::post(io_, [&] {
      links_->stop_listening();
      if (link_) link_->close(Duration::zero());
      link_.reset();
      links_.reset();
      closed.set_value();
    });
    closed.get_future().get();
    work_.reset();
    io_.stop();
    thread_.join();
  }
  std::string address() const { return links_->address(); }
  boost::asio::io_context& io() { return io_; }

  std::function<void(Link&, const Handshake::Message& welcome)> on_proven;  // set before traffic

 private:
  void accept(std::shared_ptr<Link> link) {
    link_ = std::move(link);
    link_->set_receive_limit(1 << 20);
    link_->start({.on_message =
                      [this](MessageType type, std::string_view body) {
                        if (accepted_) return;
                        const Handshake::Step step = handshake_.receive(type, body);
                        accepted_ = step.accepted;
                        if (step.accepted) return on_proven(*link_, *step.reply);
                        if (step.reply) link_->send(step.reply->type, step.reply->body, [] {});
                      },
                  .on_broken = [](const Error&) {}});
  }

  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::unique_ptr<LinkProvider> links_;
  std::shared_ptr<Link> link_;
  Handshake handshake_{Handshake::Side::kServer, test_options(Role::kStore, 3).self,
                       test_options().cluster_secret};
  bool accepted_ = false;
  std::thread thread_;
};

template <class Kind>
class ControlSuite : public TransportSuite<Kind> {};
TYPED_TEST_SUITE(ControlSuite, Kinds);

// A peer that speaks links only, so that it can break the protocol.
class RawPeer {
 public:
  template <class Kind>
  RawPeer(Kind& kind, const std::string& address) : work_(io_.get_executor()), links_(kind.raw_links(io_)) {
    thread_ = std::thread([this] { io_.run(); });
    run([&] {
      auto link = links_->connect(address);
      if (!link.ok()) throw std::runtime_error(link.error().message);
      link_ = *link;
      link_->set_receive_limit(1 << 20);
      link_->start({.on_message =
                        [this](MessageType type, std::string_view body) {
                          std::lock_guard lock(mutex_);
                          received_.emplace_back(type, std::string(body));
                          changed_.notify_all();
                        },
                    .on_broken =
                        [this](const Error&) {
                          std::lock_guard lock(mutex_);
                          broken_ = true;
                          changed_.notify_all();
                        }});
    });
  }
  ~RawPeer() {
    run([&] {
      link_->close(Duration::zero());
      link_.reset();
      links_.reset();
    });
    work_.reset();
    io_.stop();
    thread_.join();
  }
  void send(MessageType type, std::string body) {
    run([&] { link_->send(type, std::move(body), [] {}); });
  }
  std::optional<Error> wait_goodbye() {
    std::unique_lock lock(mutex_);
    const auto said = [&] { return !received_.empty() && received_.back().first == MessageType::kGoodbye; };
    if (!changed_.wait_until(lock, Deadline::in(kPatience).at(), said)) return std::nullopt;
    return Handshake::read_goodbye(received_.back().second);
  }
  bool wait_broken(Duration patience = kPatience) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, Deadline::in(patience).at(), [&] { return broken_; });
  }

 private:
  void run(const std::function<void()>& f) {
    std::promise<void> done;
    boost::asio::post(io_, [&] {
      f();
      done.set_value();
    });
    done.get_future().get();
  }
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::unique_ptr<LinkProvider> links_;
  std::shared_ptr<Link> link_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::pair<MessageType, std::string>> received_;
  bool broken_ = false;
  std::thread thread_;
};

TYPED_TEST(ControlSuite, ConnectsAndSaysWhoIsThere) {
  auto server = this->server();
  auto options = test_options(Role::kWorker, 2);
  options.self.replica = 1;
  options.self.replica_rank = 1;
  options.self.replica_size = 2;
  options.self.model_fingerprint = {1, 2};
  auto client = this->node(options);

  auto connection = client->connect(server->control->address());
  ASSERT_TRUE(connection.ok()) << connection.error().message;
  EXPECT_EQ((*connection)->peer().role, Role::kStore);
  EXPECT_EQ((*connection)->peer().world_rank, 3);
  ASSERT_TRUE(server->wait_ups(1));
  const PeerInfo seen = server->ups()[0]->peer();
  EXPECT_EQ(seen.world_rank, 2);
  EXPECT_EQ(seen.replica, 1);
  EXPECT_EQ(seen.replica_rank, 1);
  EXPECT_EQ(seen.replica_size, 2);
  EXPECT_EQ(seen.model_fingerprint, (Hash128{1, 2}));
  EXPECT_TRUE(seen.layout_fingerprint.is_zero());

  ASSERT_TRUE(client->send(*connection, MessageType::kSubmit, "question").ok());
  ASSERT_TRUE(server->wait_messages(1));
  EXPECT_EQ(server->messages()[0].type, MessageType::kSubmit);
  EXPECT_EQ(server->messages()[0].body, "question");
  ASSERT_TRUE(server->send(server->ups()[0], MessageType::kTokenEvents, "answer").ok());
  ASSERT_TRUE(client->wait_messages(1));
  EXPECT_EQ(client->messages()[0].body, "answer");
  EXPECT_EQ(server->stats().peers_up_now, 1u);
  EXPECT_EQ(server->stats().messages_received, 1u);
}

TYPED_TEST(ControlSuite, ConnectionsHaveTheirOwnIds) {
  auto server = this->server();
  auto client = this->client();
  auto first = client->connect(server->control->address());
  auto second = client->connect(server->control->address());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE((*first)->id(), (*second)->id());
  ASSERT_TRUE(server->wait_ups(2));
  EXPECT_NE(server->ups()[0]->id(), server->ups()[1]->id());
}

TYPED_TEST(ControlSuite, RefusesAWrongSecret) {
  auto server = this->server();
  auto options = test_options();
  options.cluster_secret = "another secret of enough bytes..";
  auto client = this->node(options);
  auto connection = client->connect(server->control->address());
  ASSERT_FALSE(connection.ok());
  EXPECT_EQ(connection.error().code, Code::kUnauthenticated);
  EXPECT_NE(connection.error().message.find("wrong cluster secret"), std::string::npos);
  EXPECT_TRUE(client->ups().empty());
  EXPECT_TRUE(server->ups().empty());
  EXPECT_EQ(client->stats().handshakes_refused, 1u);
}

TYPED_TEST(ControlSuite, RefusesAShortSecretAtOnce) {
  auto options = test_options();
  options.cluster_secret = "short";
  EXPECT_THROW(this->node(options), std::runtime_error);
}

TYPED_TEST(ControlSuite, RefusesOtherFingerprintsWithTheReason) {
  auto options = test_options(Role::kStore, 3);
  options.self.model_fingerprint = {1, 1};
  options.self.layout_fingerprint = {2, 2};
  auto server = this->node(options);
  options = test_options();
  options.self.model_fingerprint = {1, 1};
  options.self.layout_fingerprint = {2, 3};
  auto client = this->node(options);
  auto connection = client->connect(server->control->address());
  ASSERT_FALSE(connection.ok());
  EXPECT_EQ(connection.error().code, Code::kInvalidArgument);
  EXPECT_NE(connection.error().message.find("layout fingerprint " + Hash128{2, 3}.hex()), std::string::npos)
      << connection.error().message;
  EXPECT_TRUE(server->ups().empty());

  auto unbound = this->client();
  EXPECT_TRUE(unbound->connect(server->control->address()).ok());
}

TYPED_TEST(ControlSuite, RefusesAnotherProtocolVersion) {
  auto server = this->server();
  RawPeer peer(this->kind, server->control->address());
  Handshake handshake(Handshake::Side::kClient, {}, test_options().cluster_secret, kProtocolVersion + 1);
  peer.send(MessageType::kHello, handshake.begin().reply->body);
  auto refusal = peer.wait_goodbye();
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->message, "protocol version 2, expected 1");
  EXPECT_TRUE(server->ups().empty());
}

TYPED_TEST(ControlSuite, TakesNothingFromAStranger) {
  auto server = this->server();
  RawPeer peer(this->kind, server->control->address());
  peer.send(MessageType::kSubmit, "let me in");
  auto refusal = peer.wait_goodbye();
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->code, Code::kUnauthenticated);
  EXPECT_TRUE(peer.wait_broken());
  EXPECT_TRUE(server->messages().empty());
  EXPECT_TRUE(server->ups().empty());
  EXPECT_TRUE(this->client()->connect(server->control->address()).ok());
}

TYPED_TEST(ControlSuite, DropsAStrangerWithALongMessage) {
  auto server = this->server();
  RawPeer peer(this->kind, server->control->address());
  peer.send(MessageType::kHello, std::string(8 << 20, 'x'));
  EXPECT_TRUE(peer.wait_broken());
  EXPECT_TRUE(this->client()->connect(server->control->address()).ok());
}

// The server may have much to say as soon as it has let the client in.
TYPED_TEST(ControlSuite, TheFirstMessageMayArriveInOneGoWithTheWelcome) {
  const std::string first(6000, 'x');
  ASSERT_GT(first.size(), kMaxHandshakeBytes);
  auto client = this->client();
  RawServer server(this->kind);
  std::promise<void> reading, release;
  server.on_proven = [&](Link& link, const Handshake::Message& welcome) {
    // The client's thread looks when both are there.
    boost::asio::post(client->io(), [&] {
      reading.set_value();
      release.get_future().wait();
    });
    reading.get_future().wait();
    link.send(welcome.type, welcome.body, [] {});
    link.send(MessageType::kSubmit, first, [] {});
    boost::asio::post(server.io(), [&] { release.set_value(); });
  };
  ASSERT_TRUE(client->connect(server.address()).ok());
  EXPECT_TRUE(client->wait_messages(1) && client->messages()[0].body == first);
  EXPECT_TRUE(client->downs().empty());
}

TYPED_TEST(ControlSuite, DropsASilentStranger) {
  auto options = test_options();
  options.handshake_deadline = 200ms;
  auto server = this->node(options);
  RawPeer silent(this->kind, server->control->address());
  EXPECT_TRUE(silent.wait_broken());
  EXPECT_EQ(server->stats().handshakes_now, 0u);
}

TYPED_TEST(ControlSuite, BoundsTheStrangers) {
  auto options = test_options();
  options.handshake_deadline = 10min;
  auto server = this->node(options);
  std::vector<std::unique_ptr<RawPeer>> strangers;
  for (uint32_t i = 0; i < kMaxHandshakes; ++i) {
    strangers.push_back(std::make_unique<RawPeer>(this->kind, server->control->address()));
  }
  Deadline deadline = Deadline::in(kPatience);
  while (server->stats().handshakes_now < kMaxHandshakes && !deadline.passed()) std::this_thread::yield();
  ASSERT_EQ(server->stats().handshakes_now, kMaxHandshakes);
  RawPeer one_more(this->kind, server->control->address());
  EXPECT_TRUE(one_more.wait_broken());
  EXPECT_EQ(server->stats().handshakes_now, kMaxHandshakes);
  strangers.pop_back();
  deadline = Deadline::in(kPatience);
  while (server->stats().handshakes_now == kMaxHandshakes && !deadline.passed()) std::this_thread::yield();
  EXPECT_TRUE(this->client()->connect(server->control->address()).ok());
}

TYPED_TEST(ControlSuite, TellsWhenNobodyListens) {
  auto client = this->client();
  auto connection = client->connect(this->kind.nobody(), 3 * kPatience);
  ASSERT_FALSE(connection.ok());
  EXPECT_EQ(connection.error().code, Code::kUnavailable) << connection.error().message;
}

TYPED_TEST(ControlSuite, KeepsTheOrderOfManyMessages) {
  constexpr uint32_t kMessages = 100000;
  auto server = this->server();
  auto client = this->client();
  auto connection = client->connect(server->control->address());
  ASSERT_TRUE(connection.ok());
  // Sizes vary so that short messages follow long ones, which travel differently.
  const auto size = [](uint32_t i) { return i % 1000 == 0 ? 100000 : 4 + i % 64; };
  uint32_t sent = 0;
  const Deadline deadline = Deadline::in(kPatience * 3);
  while (sent < kMessages && !deadline.passed()) {
    client->on_io([&] {
      for (int burst = 0; burst < 100 && sent < kMessages; ++burst) {
        std::string body(size(sent), 'm');
        std::memcpy(body.data(), &sent, sizeof sent);
        if (!(*connection)->send(MessageType::kStepPlan, std::move(body)).ok()) break;
        ++sent;
      }
      return 0;
    });
  }
  ASSERT_EQ(sent, kMessages);
  ASSERT_TRUE(server->wait_messages(kMessages));
  const auto messages = server->messages();
  for (uint32_t i = 0; i < kMessages; ++i) {
    uint32_t number = 0;
    std::memcpy(&number, messages[i].body.data(), sizeof number);
    ASSERT_EQ(number, i);
    ASSERT_EQ(messages[i].body.size(), size(i));
  }
}

TYPED_TEST(ControlSuite, BoundsMessagesAndBytesInFlight) {
  auto server = this->server();
  auto options = test_options();
  options.max_bytes_in_flight = 20 << 20;
  auto client = this->node(options);
  auto connection = client->connect(server->control->address());
  ASSERT_TRUE(connection.ok());
  const Status too_large = client->send(*connection, MessageType::kStepPlan, std::string(64 << 20, 'x'));
  ASSERT_FALSE(too_large.ok());
  EXPECT_EQ(too_large.error().code, Code::kTooLarge);

  const Status burst = client->on_io([&]() -> Status {  // the loop cannot complete anything in between
    for (int i = 0; i < 8; ++i)
      LOWKEY_TRY((*connection)->send(MessageType::kStepPlan, std::string(16 << 20, 'x')));
    return {};
  });
  ASSERT_FALSE(burst.ok());
  EXPECT_EQ(burst.error().code, Code::kResourceExhausted);
  ASSERT_TRUE(server->wait_messages(1));
  EXPECT_EQ(server->messages()[0].body.size(), 16u << 20);
  const Deadline deadline = Deadline::in(kPatience);
  while (client->stats().message_bytes_in_flight_now > 1024 && !deadline.passed()) std::this_thread::yield();
  EXPECT_TRUE(client->send(*connection, MessageType::kStepPlan, std::string(16 << 20, 'y')).ok());
  EXPECT_TRUE(server->wait_messages(2));
}

TYPED_TEST(ControlSuite, ClosesInOrder) {
  auto server = this->server();
  auto client = this->client();
  auto connection = client->connect(server->control->address());
  ASSERT_TRUE(connection.ok());
  ASSERT_TRUE(client->send(*connection, MessageType::kSubmit, "last words").ok());
  client->on_io([&] {
    (*connection)->close();
    (*connection)->close();
    return 0;
  });
  ASSERT_TRUE(client->wait_downs(1));
  ASSERT_TRUE(server->wait_downs(1));
  EXPECT_EQ(client->downs()[0].error.code, Code::kCancelled);
  EXPECT_EQ(server->downs()[0].error.code, Code::kCancelled);
  ASSERT_EQ(server->messages().size(), 1u);
  const Status late = client->send(*connection, MessageType::kSubmit, "too late");
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, Code::kUnavailable);
  EXPECT_EQ(client->stats().peers_up_now, 0u);
  client->stop();
  EXPECT_EQ(client->downs().size(), 1u);
  EXPECT_EQ(server->downs().size(), 1u);
}

TYPED_TEST(ControlSuite, ReportsAPeerThatVanishes) {
  auto server = this->server();
  auto client = this->client();
  auto connection = client->connect(server->control->address());
  ASSERT_TRUE(connection.ok());
  server->stop();
  ASSERT_TRUE(client->wait_downs(1));
  EXPECT_EQ(client->downs()[0].error.code, Code::kUnavailable);
  EXPECT_FALSE(client->send(*connection, MessageType::kSubmit, "anybody?").ok());
  EXPECT_EQ(client->downs().size(), 1u);
  EXPECT_EQ(client->stats().connections_lost, 1u);
}

}  // namespace
}  // namespace lowkey::transport
