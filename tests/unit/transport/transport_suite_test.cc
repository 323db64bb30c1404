// The contract of control_plane.h and data_plane.h, held against every implementation.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/unit/transport/node.h"
#include "transport/core/handshake.h"
#include "transport/core/link.h"
#include "transport/core/session_plane.h"
#include "transport/host_identity.h"
#include "transport/loopback/loopback_link.h"
#include "transport/loopback/loopback_network.h"
#include "transport/ucx/context.h"
#include "transport/ucx/ucx_link.h"
#include "transport/ucx/ucx_transport.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::transport {
namespace {

using namespace std::chrono_literals;

struct Loopback {
  std::shared_ptr<LoopbackNetwork> network = LoopbackNetwork::create();

  Node::Make make() {
    return [network = network](boost::asio::io_context& io, ControlOptions options,
                               ControlHandlers handlers) -> decltype(Node::Make()(io, options, handlers)) {
      LOWKEY_ASSIGN(transport, network->make_transport(io, std::move(options), std::move(handlers)));
      return std::pair(std::move(transport.control), std::move(transport.data));
    };
  }
  std::unique_ptr<LinkProvider> raw_links(boost::asio::io_context& io) {
    return std::make_unique<LoopbackLinkProvider>(io, network);
  }
  std::string nobody() { return "loopback:4711"; }
  const char* transport_name() { return "loopback"; }
  const char* device_name() { return "memory"; }
  bool is_measured() { return false; }
};

// Same host, so that transfers go through shared memory.
struct Ucx {
  virtual ~Ucx() = default;
  virtual std::string host() { return host_identity(); }
  virtual const char* transport_name() { return "shm"; }
  virtual const char* device_name() { return "/memory"; }
  bool is_measured() { return true; }

  Node::Make make() {
    return [host = host()](boost::asio::io_context& io, ControlOptions options,
                           ControlHandlers handlers) -> decltype(Node::Make()(io, options, handlers)) {
      options.self.host = host;
      LOWKEY_ASSIGN(transport, make_ucx_transport(io, std::move(options), std::move(handlers)));
      return std::pair(std::move(transport.control), std::move(transport.data));
    };
  }
  std::unique_ptr<LinkProvider> raw_links(boost::asio::io_context& io) {
    auto context = Context::create(Context::Kind::kControl, "lo").value();
    auto hub = UcxHub::create(io, Worker::create(std::move(context)).value()).value();
    return UcxLinkProvider::create(std::move(hub), "127.0.0.1", 0).value();
  }
  std::string nobody() { return "127.0.0.1:1"; }
};

// Processes that do not know a common host: transfers go over the network.
struct UcxNetwork : Ucx {
  std::string host() override { return ""; }
  const char* transport_name() override { return "tcp"; }
  const char* device_name() override { return "tcp/"; }
};

template <class Kind>
class TransportSuite : public ::testing::Test {
 public:
  std::unique_ptr<Node> node(const ControlOptions& options) {
    return std::make_unique<Node>(kind.make(), options);
  }
  std::unique_ptr<Node> server() { return node(test_options(Role::kStore, 3)); }
  std::unique_ptr<Node> client() { return node(test_options(Role::kWorker, 1)); }

  Kind kind;
};

using Kinds = ::testing::Types<Loopback, Ucx, UcxNetwork>;
TYPED_TEST_SUITE(TransportSuite, Kinds);

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

TYPED_TEST(TransportSuite, ConnectsAndSaysWhoIsThere) {
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

TYPED_TEST(TransportSuite, ConnectionsHaveTheirOwnIds) {
  auto server = this->server();
  auto client = this->client();
  auto first = client->connect(server->control->address());
  auto second = client->connect(server->control->address());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE((*first)->id(), (*second)->id());
  ASSERT_TRUE(server->wait_ups(2));
  EXPECT_NE(server->ups()[0]->id(), server->ups()[1]->id());
}

TYPED_TEST(TransportSuite, RefusesAWrongSecret) {
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

TYPED_TEST(TransportSuite, RefusesAShortSecretAtOnce) {
  auto options = test_options();
  options.cluster_secret = "short";
  EXPECT_THROW(this->node(options), std::runtime_error);
}

TYPED_TEST(TransportSuite, RefusesOtherFingerprintsWithTheReason) {
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

TYPED_TEST(TransportSuite, RefusesAnotherProtocolVersion) {
  auto server = this->server();
  RawPeer peer(this->kind, server->control->address());
  Handshake handshake(Handshake::Side::kClient, {}, test_options().cluster_secret, kProtocolVersion + 1);
  peer.send(MessageType::kHello, handshake.begin().reply->body);
  auto refusal = peer.wait_goodbye();
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->message, "protocol version 2, expected 1");
  EXPECT_TRUE(server->ups().empty());
}

TYPED_TEST(TransportSuite, TakesNothingFromAStranger) {
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

TYPED_TEST(TransportSuite, DropsAStrangerWithALongMessage) {
  auto server = this->server();
  RawPeer peer(this->kind, server->control->address());
  peer.send(MessageType::kHello, std::string(8 << 20, 'x'));
  EXPECT_TRUE(peer.wait_broken());
  EXPECT_TRUE(this->client()->connect(server->control->address()).ok());
}

TYPED_TEST(TransportSuite, DropsASilentStranger) {
  auto options = test_options();
  options.handshake_deadline = 200ms;
  auto server = this->node(options);
  RawPeer silent(this->kind, server->control->address());
  EXPECT_TRUE(silent.wait_broken());
  EXPECT_EQ(server->stats().handshakes_now, 0u);
}

TYPED_TEST(TransportSuite, BoundsTheStrangers) {
  auto options = test_options();
  options.handshake_deadline = 30s;
  auto server = this->node(options);
  std::vector<std::unique_ptr<RawPeer>> strangers;
  for (uint32_t i = 0; i < kMaxHandshakes; ++i) {
    strangers.push_back(std::make_unique<RawPeer>(this->kind, server->control->address()));
  }
  const Deadline deadline = Deadline::in(kPatience);
  while (server->stats().handshakes_now < kMaxHandshakes && !deadline.passed()) std::this_thread::yield();
  ASSERT_EQ(server->stats().handshakes_now, kMaxHandshakes);
  RawPeer one_more(this->kind, server->control->address());
  EXPECT_TRUE(one_more.wait_broken());
  EXPECT_EQ(server->stats().handshakes_now, kMaxHandshakes);
  strangers.pop_back();
  while (server->stats().handshakes_now == kMaxHandshakes && !deadline.passed()) std::this_thread::yield();
  EXPECT_TRUE(this->client()->connect(server->control->address()).ok());
}

TYPED_TEST(TransportSuite, TellsWhenNobodyListens) {
  auto client = this->client();
  const TimePoint start = Clock::now();
  auto connection = client->connect(this->kind.nobody(), 5s);
  ASSERT_FALSE(connection.ok());
  EXPECT_LT(seconds(Clock::now() - start), 6.0);
}

TYPED_TEST(TransportSuite, KeepsTheOrderOfManyMessages) {
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

TYPED_TEST(TransportSuite, BoundsMessagesAndBytesInFlight) {
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

TYPED_TEST(TransportSuite, ClosesInOrder) {
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

TYPED_TEST(TransportSuite, ReportsAPeerThatVanishes) {
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

std::vector<std::byte> pattern(size_t bytes, uint32_t seed) {
  std::vector<std::byte> data(bytes);
  for (size_t i = 0; i < bytes; ++i) {
    seed = seed * 1664525u + 1013904223u;
    data[i] = static_cast<std::byte>(seed >> 24);
  }
  return data;
}

template <class Suite>
struct Transfers {
  explicit Transfers(Suite& suite, size_t bytes) : server(suite.server()), client(suite.client()) {
    auto connected = client->connect(server->control->address());
    if (!connected.ok()) throw std::runtime_error(connected.error().message);
    connection = *connected;
    auto allocated = server->on_io([&] { return server->data->allocate(bytes); });
    if (!allocated.ok()) throw std::runtime_error(allocated.error().message);
    pool = *allocated;
    auto opened = client->on_io(
        [&] { return client->data->open(connection, server->data->address(), pool->remote_handle()); });
    if (!opened.ok()) throw std::runtime_error(opened.error().message);
    remote = *opened;
  }
  // Whoever frees a pool has hung up on its users: over a network the owner's CPU writes what arrives.
  ~Transfers() {
    client->stop();
    server->stop();
  }
  std::unique_ptr<Node> server, client;
  ConnectionPtr connection;
  std::shared_ptr<MemoryPool> pool;
  std::shared_ptr<RemotePool> remote;
};

TYPED_TEST(TransportSuite, PutsAndGetsPieces) {
  Transfers<TransportSuite<TypeParam>> t(*this, 16 << 20);
  EXPECT_EQ(t.remote->size(), 16u << 20);
  EXPECT_STREQ(t.remote->transport(), this->kind.transport_name());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(t.pool->bytes().data()) % 4096, 0u);

  std::vector<std::vector<std::byte>> pieces;
  std::vector<Transfer> batch;
  uint64_t offset = 0;
  for (size_t mib = 1; mib <= 4; ++mib) {
    pieces.push_back(pattern((mib << 20) - 64 * mib, mib));
    batch.push_back({pieces.back(), offset});
    offset += mib << 20;
  }
  ASSERT_TRUE(t.client->put(t.remote, batch).ok());
  offset = 0;
  for (size_t mib = 1; mib <= 4; ++mib) {
    EXPECT_EQ(slab_checksum(t.pool->bytes().subspan(offset, pieces[mib - 1].size())),
              slab_checksum(pieces[mib - 1]));
    offset += mib << 20;
  }

  const auto source = pattern(16 << 20, 99);
  t.server->on_io([&] {
    std::memcpy(t.pool->bytes().data(), source.data(), source.size());
    return 0;
  });
  for (auto& piece : pieces) std::fill(piece.begin(), piece.end(), std::byte{0});
  ASSERT_TRUE(t.client->get(t.remote, batch).ok());
  for (size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_EQ(slab_checksum(pieces[i]),
              slab_checksum(std::span(source).subspan(batch[i].remote_offset, pieces[i].size())));
  }
  const TransferStats stats = t.client->stats().transfers.at(t.remote->transport());
  EXPECT_EQ(stats.put_batches, 1u);
  EXPECT_EQ(stats.get_batches, 1u);
  EXPECT_EQ(stats.put_bytes, (10u << 20) - 640);
  EXPECT_EQ(stats.failed_puts + stats.failed_gets, 0u);
}

TYPED_TEST(TransportSuite, MovesManySmallPiecesInOneBatch) {
  Transfers<TransportSuite<TypeParam>> t(*this, 4 << 20);
  const auto source = pattern(4 << 20, 7);
  std::vector<std::byte> back(source.size());
  std::vector<Transfer> puts, gets;
  for (size_t at = 0; at < source.size(); at += 4096) {  // the local copy of `source` is only read by a put
    puts.push_back({{const_cast<std::byte*>(source.data()) + at, 4096}, source.size() - 4096 - at});
    gets.push_back({std::span(back).subspan(at, 4096), source.size() - 4096 - at});
  }
  ASSERT_TRUE(t.client->put(t.remote, puts).ok());
  ASSERT_TRUE(t.client->get(t.remote, gets).ok());
  EXPECT_EQ(back, source);
  EXPECT_TRUE(t.client->put(t.remote, {}).ok());
}

TYPED_TEST(TransportSuite, TellsThePathOfAPairOnce) {
  Transfers<TransportSuite<TypeParam>> t(*this, 4 << 20);
  ASSERT_TRUE(t.client->wait_paths(1));
  auto again = t.client->on_io(
      [&] { return t.client->data->open(t.connection, t.server->data->address(), t.pool->remote_handle()); });
  ASSERT_TRUE(again.ok());
  std::vector<std::byte> local(4096);
  ASSERT_TRUE(t.client->put(t.remote, {{local, 0}}).ok());
  ASSERT_EQ(t.client->paths().size(), 1u);
  const Attestation path = t.client->paths()[0];
  EXPECT_EQ(path.peer_role, Role::kStore);
  EXPECT_EQ(path.peer_rank, 3);
  EXPECT_STREQ(to_string(path.found), this->kind.transport_name());
  EXPECT_TRUE(path.as_expected()) << describe(path);
  EXPECT_NE(path.device.find(this->kind.device_name()), std::string::npos) << path.device;
  EXPECT_EQ(path.put_bytes_per_second > 0, this->kind.is_measured());
  EXPECT_EQ(path.get_bytes_per_second > 0, this->kind.is_measured());

  const TransportStats stats = t.client->stats();
  ASSERT_EQ(stats.paths_now.size(), 1u);
  EXPECT_EQ(stats.transfers.at(t.remote->transport()).put_bytes, 4096u);  // measuring is no traffic
  EXPECT_EQ(stats.transfers.at(t.remote->transport()).get_batches, 0u);
  EXPECT_TRUE(t.server->paths().empty());  // only who transfers can tell
  for (const std::byte b : t.pool->bytes()) ASSERT_EQ(b, std::byte{0});
  t.server->stop();
  ASSERT_TRUE(t.client->wait_downs(1));
  EXPECT_TRUE(t.client->stats().paths_now.empty());
}

TYPED_TEST(TransportSuite, RefusesTransfersOutsideThePool) {
  Transfers<TransportSuite<TypeParam>> t(*this, 1 << 20);
  std::vector<std::byte> local(4096);
  for (uint64_t offset : {uint64_t{(1 << 20) - 4095}, uint64_t{1} << 40, ~uint64_t{0} - 100}) {
    const Status status = t.client->put(t.remote, {{local, offset}});
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, Code::kInvalidArgument);
  }
}

TYPED_TEST(TransportSuite, RefusesAMalformedHandle) {
  Transfers<TransportSuite<TypeParam>> t(*this, 1 << 20);
  for (std::string handle : {std::string(), std::string("x"), std::string(300, '\xff')}) {
    auto opened = t.client->on_io(
        [&] { return t.client->data->open(t.connection, t.server->data->address(), handle); });
    EXPECT_FALSE(opened.ok());
  }
}

TYPED_TEST(TransportSuite, FailsTransfersToAPeerThatIsDown) {
  Transfers<TransportSuite<TypeParam>> t(*this, 1 << 20);
  t.server->stop();
  ASSERT_TRUE(t.client->wait_downs(1));
  std::vector<std::byte> local(4096);
  auto keep_alive = std::make_shared<int>(0);
  const Status status = t.client->put(t.remote, {{local, 0}}, kPatience, keep_alive);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, Code::kUnavailable);
  t.client->stats();  // a turn of the loop
  EXPECT_EQ(keep_alive.use_count(), 1);
  EXPECT_EQ(t.client->stats().quarantined_bytes_now, 0u);
}

TYPED_TEST(TransportSuite, ReleasesWhatItKeptAlive) {
  Transfers<TransportSuite<TypeParam>> t(*this, 1 << 20);
  auto local = std::make_shared<std::vector<std::byte>>(1 << 20);
  ASSERT_TRUE(t.client->get(t.remote, {{*local, 0}}, kPatience, local).ok());
  t.client->stats();
  EXPECT_EQ(local.use_count(), 1);
}

// One host by name, but no shared memory with the peer: what happens without a word in UCX is told here.
TEST(TransportPaths, AFallbackFromSharedMemoryIsAMismatch) {
  Ucx kind;
  Node server(kind.make(), test_options(Role::kStore, 3)), client(kind.make(), test_options());
  auto connection = client.connect(server.control->address());
  ASSERT_TRUE(connection.ok());
  auto pool = server.on_io([&] { return server.data->allocate(1 << 20); });
  ASSERT_TRUE(pool.ok());
  auto opened =
      client.on_io([&] { return client.data->open(*connection, "no data address", (*pool)->remote_handle()); });
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  ASSERT_TRUE(client.wait_paths(1));
  const Attestation path = client.paths()[0];
  EXPECT_EQ(path.found, Path::kTcp);
  EXPECT_EQ(path.expected, Path::kShm);
  EXPECT_FALSE(check_required(path, "expected").ok());
  EXPECT_FALSE(check_required(path, "shm").ok());
  EXPECT_TRUE(check_required(path, "any").ok());
  client.stop();
  server.stop();
}

}  // namespace
}  // namespace lowkey::transport
