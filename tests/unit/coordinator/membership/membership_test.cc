#include "coordinator/membership/membership.h"

#include <gtest/gtest.h>

#include "coordinator/routing/least_loaded.h"
#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

// Membership only asks who is on the other side.
class Peer final : public transport::ControlConnection {
 public:
  Peer(transport::Role role, int world_rank, int replica, int replica_rank) {
    info_.role = role;
    info_.world_rank = world_rank;
    info_.replica = replica;
    info_.replica_rank = replica_rank;
  }
  const transport::PeerInfo& peer() const override { return info_; }
  uint64_t id() const override { return static_cast<uint64_t>(info_.world_rank); }
  Status send(transport::MessageType, std::string) override { return {}; }
  void close(const std::string&) override {}

 private:
  transport::PeerInfo info_;
};

struct MembershipTest : testing::Test {
  transport::ConnectionPtr up(transport::Role role, int world_rank, int replica = 0, int replica_rank = 0) {
    auto peer = std::make_shared<Peer>(role, world_rank, replica, replica_rank);
    membership.on_up(peer);
    return peer;
  }
  transport::ConnectionPtr leader(int replica, uint64_t max_tokens = 100, uint32_t running = 0) {
    auto peer = up(transport::Role::kWorker, 1 + 2 * replica, replica, 0);
    state(peer, true, max_tokens, running);
    return peer;
  }
  void state(const transport::ConnectionPtr& peer, bool ready, uint64_t max_tokens = 100,
             uint32_t running = 0) {
    wire::ReplicaState state;
    state.set_ready(ready);
    if (!ready) state.set_not_ready_reason("starting");
    state.set_max_sequence_tokens(max_tokens);
    state.set_running(running);
    membership.on_state(peer, state);
  }

  monitoring::Metrics metrics{{{"role", "coordinator"}, {"rank", "0"}}};
  Membership membership{metrics};
};

using transport::Role;
const Error kGone{Code::kUnavailable, "connection reset", {}};

TEST_F(MembershipTest, ReadyOnceTheLeaderSaysSo) {
  EXPECT_EQ(membership.not_ready_reason(), "no replica has joined yet");
  auto peer = up(Role::kWorker, 1);
  EXPECT_FALSE(membership.ready());
  EXPECT_EQ(membership.not_ready_reason(), "replica 0: has not reported yet");
  state(peer, false);
  EXPECT_EQ(membership.not_ready_reason(), "replica 0: starting");
  state(peer, true);
  EXPECT_TRUE(membership.ready());
  EXPECT_EQ(membership.max_sequence_tokens(), 100u);
}

TEST_F(MembershipTest, LostLeaderEndsItsReplica) {
  auto first = leader(0);
  auto second = leader(1, 200);
  membership.find(0)->in_flight = 3;
  EXPECT_EQ(membership.on_down(first, kGone), 0);
  EXPECT_TRUE(membership.ready());
  EXPECT_EQ(membership.find(0)->in_flight, 0u);
  EXPECT_EQ(membership.on_down(first, kGone), -1);  // once
  EXPECT_EQ(membership.on_down(second, kGone), 1);
  EXPECT_FALSE(membership.ready());
  EXPECT_EQ(membership.not_ready_reason(),
            "replica 0: its leader is gone: connection reset; "
            "replica 1: its leader is gone: connection reset");
}

TEST_F(MembershipTest, LostFollowerMakesItsReplicaUnready) {
  auto first = leader(0);
  auto follower = up(Role::kWorker, 2, 0, 1);
  EXPECT_EQ(membership.peers().size(), 2u);
  EXPECT_EQ(membership.on_down(follower, kGone), -1);
  EXPECT_FALSE(membership.ready());
  EXPECT_EQ(membership.not_ready_reason(), "replica 0: rank 1 is gone: connection reset");
  EXPECT_EQ(membership.peers().size(), 1u);
  state(first, true);  // the leader has not noticed yet
  EXPECT_FALSE(membership.ready());
  up(Role::kWorker, 2, 0, 1);
  EXPECT_TRUE(membership.ready());
}

TEST_F(MembershipTest, StoresAreNoReplicas) {
  auto store = up(Role::kStore, 9);
  EXPECT_TRUE(membership.replicas().empty());
  leader(0);
  EXPECT_EQ(membership.on_down(store, kGone), -1);
  EXPECT_TRUE(membership.ready());
}

TEST_F(MembershipTest, LeastLoaded) {
  const auto& replicas = membership.replicas();
  EXPECT_EQ(least_loaded(replicas, 1, -1), -1);
  leader(0);
  leader(1);
  leader(2, 50);
  EXPECT_EQ(least_loaded(replicas, 1, -1), 0);
  EXPECT_EQ(least_loaded(replicas, 1, 0), 1);  // equals take turns
  EXPECT_EQ(least_loaded(replicas, 1, 2), 0);
  membership.find(0)->in_flight = 2;
  membership.find(1)->in_flight = 1;
  EXPECT_EQ(least_loaded(replicas, 1, 0), 2);
  EXPECT_EQ(least_loaded(replicas, 51, 0), 1);  // too long for replica 2
  EXPECT_EQ(least_loaded(replicas, 51, 0, 1), 0);
  EXPECT_EQ(least_loaded(replicas, 101, 0), -1);
  membership.find(1)->in_flight = 2;
  membership.find(0)->waiting = 5;
  EXPECT_EQ(least_loaded(replicas, 51, 1), 1);  // ours are equal: its own report decides
}

}  // namespace
}  // namespace lowkey::coordinator
