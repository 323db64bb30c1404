// Places in a cluster: who asks for one gets it, and nobody who does not ask keeps others from asking.
#include "cli/cluster_roster.h"

#include <gtest/gtest.h>

#include <array>
#include <boost/asio/io_context.hpp>

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
  ClusterRosterTest() { start({.open = true, .join_deadline = 50ms}); }

  void start(const ClusterRoster::Options& options) {
    coordinator_ = {};
    roster_ = std::make_unique<ClusterRoster>(io_, membership_, options);
    coordinator_ = make(Role::kCoordinator, roster_->wrap({}));
  }

  transport::LoopbackTransport make(Role role, transport::ControlHandlers handlers) {
    transport::ControlOptions options;
    options.self.role = role;
    options.self.replica = options.self.world_rank = -1;
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

  ConnectionPtr connect() {
    std::optional<Result<ConnectionPtr>> result;
    visitor_.control->connect(coordinator_.control->address(), Deadline::in(20s),
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
  transport::LoopbackTransport visitor_ = make(Role::kWorker, visitor_handlers());
};

TEST_F(ClusterRosterTest, WhoNeverAsksForAPlaceMakesRoomForOthers) {
  std::vector<ConnectionPtr> silent;
  start({.open = true, .join_deadline = 2s});  // longer than it takes all of them to come
  for (size_t i = 0; i < ClusterRoster::kMaxJoining; ++i) silent.push_back(connect());
  const ConnectionPtr refused = connect();
  run_until([&] { return !downs_.empty(); });
  EXPECT_NE(downs_[0].find("too many ask to join"), std::string::npos) << downs_[0];
  EXPECT_EQ(events("refused"), 1);

  run_until([&] { return downs_.size() == 1 + ClusterRoster::kMaxJoining; });
  EXPECT_NE(downs_[1].find("has not asked for a place within 2 s"), std::string::npos) << downs_[1];
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
  start({.open = true, .alone = true, .join_deadline = 50ms, .settle = 300ms});
  const ConnectionPtr peer = connect();
  ask(peer);
  run_until([&] { return !joined_.empty(); });
  EXPECT_TRUE(downs_.empty()) << downs_[0];
  peer->close();
  run_until([&] { return !downs_.empty(); });
  EXPECT_EQ(events("timed_out"), 0);
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
