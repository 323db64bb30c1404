// Places in a cluster: who asks for one gets it, and nobody who does not ask keeps others from asking.
#include "cli/cluster_roster.h"

#include <gtest/gtest.h>

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <optional>

#include "coordinator/membership/membership.h"
#include "monitoring/metrics.h"
#include "tests/support/prometheus_text.h"
#include "transport/loopback/loopback_network.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::cli {
namespace {

using namespace std::chrono_literals;
using transport::ConnectionPtr;
using transport::MessageType;
using transport::Role;

// A coordinator and one process that connects to it as often as wanted, on one thread.
class ClusterRosterTest : public testing::Test {
 protected:
  ClusterRosterTest() { start({.open = true, .join_deadline = 1s}); }

  void start(const ClusterRoster::Options& options) {
    coordinator_ = {};
    roster_ = std::make_unique<ClusterRoster>(io_, membership_, options);
    coordinator_ = make(
        {.role = Role::kCoordinator},
        roster_->wrap(
            {.on_up = [this](const auto& peer) { membership_.on_up(peer); },
             .on_message = {},
             .on_down = [this](const auto& peer, const Error& error) { membership_.on_down(peer, error); }}));
  }

  transport::LoopbackTransport make(transport::PeerInfo self, transport::ControlHandlers handlers) {
    transport::ControlOptions options;
    options.self = std::move(self);
    options.cluster_secret = "0123456789abcdef0123456789abcdef";
    return network_->make_transport(io_, std::move(options), std::move(handlers)).value();
  }

  transport::ControlHandlers visitor_handlers() {
    return {
        .on_up = {},
        .on_message =
            [this](const ConnectionPtr&, MessageType type, std::string_view body) {
              ASSERT_EQ(type, MessageType::kJoined);
              ASSERT_TRUE(joined_.emplace_back().ParseFromArray(body.data(), static_cast<int>(body.size())));
            },
        .on_down = [this](const ConnectionPtr&, const Error& error) { downs_.push_back(error.message); }};
  }

  ConnectionPtr connect() { return connect(visitor_); }
  ConnectionPtr connect(transport::LoopbackTransport& process) {
    std::optional<Result<ConnectionPtr>> result;
    process.control->connect(coordinator_.control->address(), Deadline::in(20s),
                             [&](Result<ConnectionPtr> made) { result = std::move(made); });
    run_until([&] { return result.has_value(); });
    return result->value();
  }

  template <class Condition>
  void run_until(Condition condition) {
    const Deadline deadline = Deadline::in(20s);
    while (!condition() && !deadline.passed()) {
      io_.restart();
      io_.run_one_for(100ms);
    }
    ASSERT_TRUE(condition());
  }

  static void ask(const ConnectionPtr& connection) {
    wire::Join join;
    join.set_ranks(2);
    ASSERT_TRUE(connection->send(MessageType::kJoin, join.SerializeAsString()).ok());
  }

  double events(const std::string& event) const {
    const std::string page = *monitoring::render_page(std::array{metrics_.serialize()});
    return test::read_prometheus_text(page).value("lowkey_membership_events_total",
                                                  {{"role", "coordinator"}, {"rank", "0"}, {"event", event}});
  }

  boost::asio::io_context io_;
  monitoring::Metrics metrics_{{{"role", "coordinator"}, {"rank", "0"}}};
  coordinator::Membership membership_{metrics_};
  std::shared_ptr<transport::LoopbackNetwork> network_ = transport::LoopbackNetwork::create();
  std::unique_ptr<ClusterRoster> roster_;
  transport::LoopbackTransport coordinator_;
  std::vector<wire::Joined> joined_;
  std::vector<std::string> downs_;
  transport::LoopbackTransport visitor_ =
      make({.role = Role::kWorker, .world_rank = -1, .replica = -1}, visitor_handlers());
};

TEST_F(ClusterRosterTest, WhoNeverAsksForAPlaceMakesRoomForOthers) {
  std::vector<ConnectionPtr> silent;
  start({.open = true, .join_deadline = 4s});  // longer than it takes all of them to come
  for (size_t i = 0; i < ClusterRoster::kMaxJoining; ++i) silent.push_back(connect());
  const ConnectionPtr refused = connect();
  run_until([&] { return !downs_.empty(); });
  EXPECT_NE(downs_[0].find("too many ask to join"), std::string::npos) << downs_[0];
  EXPECT_EQ(events("refused"), 1);

  run_until([&] { return downs_.size() == 1 + ClusterRoster::kMaxJoining; });
  EXPECT_NE(downs_[1].find("has not asked for a place within 4 s"), std::string::npos) << downs_[1];
  EXPECT_EQ(events("timed_out"), ClusterRoster::kMaxJoining);

  ask(connect());
  run_until([&] { return !joined_.empty(); });
  EXPECT_EQ(joined_[0].refusal(), "");
}

TEST_F(ClusterRosterTest, WhoIsAnsweredHangsUpInTime) {
  const ConnectionPtr peer = connect();
  ask(peer);
  run_until([&] { return !downs_.empty(); });
  ASSERT_EQ(joined_.size(), 1u);
  EXPECT_EQ(joined_[0].refusal(), "");
  EXPECT_NE(downs_[0].find("has not hung up after its answer"), std::string::npos) << downs_[0];
  EXPECT_EQ(events("timed_out"), 1);
}

TEST_F(ClusterRosterTest, WhoAskedWaitsAsLongAsTheCoordinatorDoes) {
  start({.open = true, .alone = true, .join_deadline = 1s, .settle = 2s});
  const ConnectionPtr peer = connect();
  ask(peer);
  run_until([&] { return !joined_.empty(); });
  EXPECT_TRUE(downs_.empty()) << downs_[0];
  peer->close();
  run_until([&] { return !downs_.empty(); });
  EXPECT_EQ(events("timed_out"), 0);
}

// A place is given again: the patience with the one that left it, or died of it, does not end the next one.
TEST_F(ClusterRosterTest, WhoTakesAPlaceThatWasLeftKeepsIt) {
  struct Leader {
    void die() {
      process.data.reset();
      process.control.reset();
    }
    int downs = 0;
    transport::LoopbackTransport process;
  };
  const auto leader = [&](Leader& self) {
    self.process =
        make({.role = Role::kWorker, .world_rank = 1, .replica = 0},
             {.on_up = {}, .on_message = {}, .on_down = [&](const auto&, const auto&) { ++self.downs; }});
    return connect(self.process);
  };
  wire::Leave leave;
  leave.set_drain_seconds(1);
  for (const bool dies : {false, true}) {
    SCOPED_TRACE(dies);
    Leader first, second;
    const ConnectionPtr asks = leader(first);
    if (dies) membership_.note_submitted(0);  // or it could go at once
    ASSERT_TRUE(asks->send(MessageType::kLeave, leave.SerializeAsString()).ok());
    run_until([&] { return !membership_.find(0) || membership_.find(0)->draining; });
    boost::asio::steady_timer patience(io_, 1500ms);
    bool over = false;
    patience.async_wait([&](boost::system::error_code) { over = true; });
    if (dies) first.die();
    run_until([&] { return !membership_.find(0); });
    const ConnectionPtr kept = leader(second);
    run_until([&] { return over; });
    EXPECT_EQ(second.downs, 0);
    ASSERT_TRUE(membership_.find(0));
    EXPECT_FALSE(membership_.find(0)->draining);
    second.die();
    run_until([&] { return !membership_.find(0)->leader; });
  }
}

TEST_F(ClusterRosterTest, OneProcessGetsOnePlace) {
  const ConnectionPtr peer = connect();
  ask(peer);
  ask(peer);
  run_until([&] { return !downs_.empty(); });
  EXPECT_NE(downs_[0].find("has asked for a place before"), std::string::npos) << downs_[0];
  EXPECT_LE(joined_.size(), 1u);
}

}  // namespace
}  // namespace lowkey::cli
