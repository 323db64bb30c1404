// Two processes over UCX: death, silence, strangers, idleness.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <random>

#include "tests/integration/transport/process.h"
#include "tests/unit/transport/node.h"
#include "transport/host_identity.h"
#include "transport/ucx/ucx_transport.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::transport {
namespace {

using namespace std::chrono_literals;

constexpr size_t kPoolBytes = 64 << 20;

class UcxProcesses : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    peer_ = std::make_unique<Process>(
        std::vector<std::string>{TRANSPORT_PEER, GetParam(), std::to_string(kPoolBytes)});
    const auto address = peer_->line(Deadline::in(kPatience));
    ASSERT_TRUE(address);
    address_ = *address;
    meet(test_options());
  }

  void meet(const ControlOptions& own) {
    connection_.reset();  // before their event loop
    remote_.reset();
    node_ = std::make_unique<Node>(
        [](boost::asio::io_context& io, ControlOptions options,
           ControlHandlers handlers) -> decltype(Node::Make()(io, options, handlers)) {
          options.self.host = GetParam() == "same-host" ? host_identity() : "";
          LOWKEY_ASSIGN(transport, make_ucx_transport(io, std::move(options), std::move(handlers)));
          return std::pair(std::move(transport.control), std::move(transport.data));
        },
        own);
    auto connected = node_->connect(address_);
    ASSERT_TRUE(connected.ok()) << connected.error().message;
    connection_ = *connected;
    ASSERT_TRUE(node_->wait_messages(1));
    wire::PoolInfo info;
    ASSERT_TRUE(info.ParseFromString(node_->messages()[0].body));
    auto opened = node_->on_io(
        [&] { return node_->data->open(connection_, info.data_address(), info.remote_handle()); });
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    remote_ = *opened;
  }

  // By its connection: its silence would be noticed after a minute, which is longer than this waits.
  void expect_death_is_noticed() {
    peer_->signal(SIGKILL);
    ASSERT_TRUE(node_->wait_downs(1));
    EXPECT_EQ(node_->stats().peers_silent, 0u);
  }
  // Nothing is under way any more, not even where it was given up.
  void expect_idle() {
    const Deadline deadline = Deadline::in(kPatience);
    TransportStats stats = node_->stats();
    while (stats.quarantined_bytes_now + stats.endpoints_closing_now > 0 && !deadline.passed()) {
      std::this_thread::yield();
      stats = node_->stats();
    }
    EXPECT_EQ(stats.quarantined_bytes_now, 0u);
    EXPECT_EQ(stats.endpoints_closing_now, 0u);
  }

  std::unique_ptr<Process> peer_;
  std::string address_;
  std::unique_ptr<Node> node_;
  ConnectionPtr connection_;
  std::shared_ptr<RemotePool> remote_;
};

INSTANTIATE_TEST_SUITE_P(Transports, UcxProcesses, ::testing::Values("same-host", "network"),
                         [](const auto& info) { return info.param == "network" ? "Network" : "SameHost"; });

TEST_P(UcxProcesses, AKilledPeerIsNoticedAtOnce) {
  EXPECT_STREQ(remote_->transport(), GetParam() == "network" ? "tcp" : "shm");
  expect_death_is_noticed();
  EXPECT_EQ(node_->downs()[0].error.code, Code::kUnavailable);
  std::vector<std::byte> local(1 << 20);
  const Status status = node_->get(remote_, {{local, 0}});
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, Code::kUnavailable);
}

TEST_P(UcxProcesses, AStoppedPeerIsNoticedByItsSilence) {
  ControlOptions as_in_the_product = test_options();
  as_in_the_product.missed_heartbeats = ControlOptions().missed_heartbeats;
  meet(as_in_the_product);
  peer_->signal(SIGSTOP);
  ASSERT_TRUE(node_->wait_downs(1));
  EXPECT_EQ(node_->downs()[0].error.message, "no sign of life for 3.0 s");
  peer_->signal(SIGCONT);
  auto again = node_->connect(address_);  // the same process, alive again, is welcome
  EXPECT_TRUE(again.ok());
}

TEST_P(UcxProcesses, TransfersEndWithTheirPeer) {
  std::vector<std::byte> local(32 << 20);
  std::atomic<bool> stop{false};
  std::atomic<int> failed{0}, finished{0};
  std::thread load([&] {
    while (!stop) {
      const Status status = node_->put(remote_, {{local, 0}});
      ++(status.ok() ? finished : failed);
      if (!status.ok()) return;
    }
  });
  while (finished < 2 && failed == 0) std::this_thread::yield();
  expect_death_is_noticed();
  load.join();
  stop = true;
  EXPECT_EQ(failed, 1);
  expect_idle();
}

TEST_P(UcxProcesses, ATransferToAStoppedPeerKeepsItsDeadline) {
  std::vector<std::byte> warm(4 << 20);
  ASSERT_TRUE(node_->get(remote_, {{warm, 0}}).ok());
  peer_->signal(SIGSTOP);
  auto local = std::make_shared<std::vector<std::byte>>(32 << 20);
  const bool one_sided = GetParam() == "same-host";
  const Status status = node_->get(remote_, {{*local, 0}}, one_sided ? kPatience : 500ms, local);
  if (one_sided) {
    EXPECT_TRUE(status.ok());  // it needs no CPU of the peer's
  } else {
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, Code::kDeadlineExceeded);
    EXPECT_EQ(node_->stats().quarantined_bytes_now, local->size());
    EXPECT_GT(local.use_count(), 1);
  }
  peer_->signal(SIGCONT);  // the network transfer completes after all, and lets go of the memory
  expect_idle();
}

TEST_P(UcxProcesses, GarbageOnTheListeningPortDoesNoHarm) {
  const size_t colon = address_.rfind(':');
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(std::stoi(address_.substr(colon + 1)));
  inet_pton(AF_INET, address_.substr(0, colon).c_str(), &address.sin_addr);
  std::mt19937 random(20240607);
  for (int client = 0; client < 100; ++client) {
    const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    std::string garbage(1 + random() % 20000, '\0');
    for (char& c : garbage) c = static_cast<char>(random());
    (void)!send(fd.get(), garbage.data(), garbage.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  ASSERT_TRUE(peer_->alive());
  ASSERT_TRUE(node_->send(connection_, MessageType::kSubmit, "still there?").ok());
  ASSERT_TRUE(node_->wait_messages(2));
  EXPECT_EQ(node_->messages()[1].body, "still there?");
  EXPECT_TRUE(node_->connect(address_).ok());
  EXPECT_TRUE(peer_->alive());
}

TEST_P(UcxProcesses, IdlenessCostsNothing) {
  const auto peer_cpu = [&] {
    const size_t before = node_->messages().size();
    EXPECT_TRUE(node_->send(connection_, MessageType::kMetricsRequest, "").ok());
    EXPECT_TRUE(node_->wait_messages(before + 1));
    return std::stod(node_->messages().back().body);
  };
  const auto own_cpu = [] {
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
           1e-6 * (used.ru_utime.tv_usec + used.ru_stime.tv_usec);
  };
  ASSERT_TRUE(node_->wait_paths(1)) << "which is measured on connecting, and is no idleness";
  const double peer_before = peer_cpu(), own_before = own_cpu();
  constexpr Duration kWindow = 4s;  // the measurement itself: several heartbeats
  EXPECT_FALSE(node_->wait_downs(1, kWindow));
  const double own = own_cpu() - own_before, peer = peer_cpu() - peer_before;
  std::printf("idle CPU per second: own %.5f, peer %.5f\n", own / seconds(kWindow), peer / seconds(kWindow));
  EXPECT_LT(own / seconds(kWindow), 0.01);
  EXPECT_LT(peer / seconds(kWindow), 0.01);
}

TEST_P(UcxProcesses, EndsInOrder) {
  EXPECT_EQ(peer_->finish(Deadline::in(kPatience)), 0);
  ASSERT_TRUE(node_->wait_downs(1));
}

}  // namespace
}  // namespace lowkey::transport
