#include "coordinator/membership/membership.h"

#include <gtest/gtest.h>

#include <array>
#include <sstream>

#include "monitoring/metrics.h"
#include "tests/support/fake_connection.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

struct MembershipTest : testing::Test {
  transport::ConnectionPtr up(transport::Role role, int world_rank, int replica = 0, int replica_rank = 0) {
    auto peer = std::make_shared<test::FakeConnection>(role, world_rank, replica, replica_rank);
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

  double count(const std::string& name, const std::string& label) {
    const std::string page = *monitoring::render_page(std::array{metrics.serialize()});
    std::istringstream lines(page);
    for (std::string line; std::getline(lines, line);)
      if (line.substr(0, line.find('{')) == name && line.find(label) != std::string::npos)
        return std::stod(line.substr(line.rfind(' ')));
    return -1;
  }

  monitoring::Metrics metrics{{{"role", "coordinator"}, {"rank", "0"}}};
  Membership membership{metrics};
};

using transport::Role;
const Error kGone{Code::kUnavailable, "connection reset", {}};

TEST_F(MembershipTest, ReadyOnceTheLeaderSaysSo) {
  EXPECT_EQ(membership.not_ready_reason(), "no replica is there");
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
  for (int i = 0; i < 3; ++i) membership.note_submitted(0);
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
  EXPECT_EQ(membership.on_down(follower, kGone), 0);  // what it was answering will not end
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

TEST_F(MembershipTest, SeatsAreAboveEveryIdThatIsTaken) {
  membership.reserve(2, 4);
  const auto first = membership.on_join(2), second = membership.on_join(1);
  EXPECT_EQ(first->replica, 2);
  EXPECT_EQ(first->first_rank, 4);
  EXPECT_EQ(second->replica, 3);
  EXPECT_EQ(second->first_rank, 6);
  up(Role::kWorker, 9, 7, 0);  // from before the coordinator was started again
  EXPECT_EQ(membership.on_join(1)->replica, 8);
  EXPECT_EQ(membership.on_join(1)->first_rank, 11);
  EXPECT_EQ(membership.on_join(0).error().code, Code::kInvalidArgument);
}

TEST_F(MembershipTest, StoresThatJoinTakeTheRankOfOneThatIsGone) {
  membership.reserve(1, 3);
  EXPECT_EQ(*membership.on_store_join(), 3);
  EXPECT_EQ(*membership.on_store_join(), 4) << "the first has not come yet";
  auto first = up(Role::kStore, 3), second = up(Role::kStore, 4);
  EXPECT_EQ(*membership.on_store_join(), 5);
  membership.on_down(first, kGone);
  EXPECT_EQ(*membership.on_store_join(), 3);
  const TimePoint later = Clock::now() + Membership::kSeatDeadline + std::chrono::seconds(1);
  up(Role::kStore, 3);
  EXPECT_EQ(*membership.on_store_join(later), 5) << "nobody has taken it";
  EXPECT_EQ(membership.on_join(1)->first_rank, 6);
  for (size_t i = 3; i < Membership::kMaxStores; ++i) EXPECT_TRUE(membership.on_store_join().ok());
  EXPECT_EQ(membership.on_store_join().error().code, Code::kResourceExhausted);
}

TEST_F(MembershipTest, VisitorsAreNoMembers) {
  auto visitor = up(Role::kWorker, -1, -1, 0);
  EXPECT_TRUE(membership.replicas().empty());
  EXPECT_TRUE(membership.peers().empty());
  EXPECT_FALSE(membership.is_member(visitor));
  EXPECT_EQ(membership.on_down(visitor, kGone), -1);
  EXPECT_EQ(count("lowkey_membership_events_total", "event=\"joined\""), 0);
}

TEST_F(MembershipTest, LeavesOnceItsRequestsHaveEnded) {
  std::vector<int> idle;
  membership.on_idle = [&](int replica) { idle.push_back(replica); };
  auto first = leader(0);
  const Seat seat = *membership.on_join(1);
  auto second = up(Role::kWorker, seat.first_rank, seat.replica, 0);
  state(second, true);
  EXPECT_EQ(count("lowkey_replicas", "state=\"ready\""), 2);
  membership.note_submitted(seat.replica);
  EXPECT_TRUE(membership.on_leaving(seat.replica));
  EXPECT_EQ(membership.ready_replicas(), 1u);
  EXPECT_EQ(count("lowkey_replicas", "state=\"draining\""), 1);
  EXPECT_EQ(membership.not_ready_reason(), "replica 1: it is leaving");
  EXPECT_TRUE(idle.empty());
  membership.note_ended(seat.replica);
  EXPECT_EQ(idle, std::vector{seat.replica});
  EXPECT_EQ(membership.on_down(second, kGone), seat.replica);
  EXPECT_EQ(membership.find(seat.replica), nullptr);
  EXPECT_EQ(count("lowkey_membership_events_total", "event=\"left\""), 1);
  EXPECT_EQ(count("lowkey_membership_events_total", "event=\"lost\""), 0);
  EXPECT_EQ(membership.on_join(1)->replica, seat.replica);  // its seat is free
  EXPECT_FALSE(membership.on_leaving(5));
  EXPECT_TRUE(membership.on_leaving(0));  // with nothing in flight: at once
  EXPECT_EQ(idle.back(), 0);
}

TEST_F(MembershipTest, WhoHasLeftHasNoSeriesThatAlerts) {
  const Error left{Code::kCancelled, "closed by the peer", {}};
  auto stays = leader(0);
  const Seat seat = *membership.on_join(2);
  auto second = up(Role::kWorker, seat.first_rank, seat.replica, 0);
  auto follower = up(Role::kWorker, seat.first_rank + 1, seat.replica, 1);
  auto store = up(Role::kStore, 9);
  const auto rank_up = [&](int rank) {
    return count("lowkey_rank_up", "peer_rank=\"" + std::to_string(rank) + "\"");
  };
  membership.on_leaving(seat.replica);
  membership.on_down(second, left);
  EXPECT_EQ(rank_up(seat.first_rank), -1);
  EXPECT_EQ(rank_up(seat.first_rank + 1), 1) << "it is still there";
  membership.on_down(follower, left);
  EXPECT_EQ(rank_up(seat.first_rank + 1), -1);
  membership.on_down(store, left);
  EXPECT_EQ(rank_up(9), -1);
  EXPECT_EQ(rank_up(1), 1);
  membership.on_down(stays, kGone);
  EXPECT_EQ(rank_up(1), 0) << "a loss is no leave";
}

TEST_F(MembershipTest, AStoreThatHasLeftGivesItsRankToTheNext) {
  membership.reserve(1, 3);
  EXPECT_EQ(*membership.on_store_join(), 3);
  auto store = up(Role::kStore, 3);
  membership.on_down(store, {Code::kCancelled, "closed by the peer", {}});
  EXPECT_EQ(*membership.on_store_join(), 3);
  EXPECT_EQ(*membership.on_store_join(), 4) << "it is on its way";
}

TEST_F(MembershipTest, WhoIsLostIsForgottenAfterAWhileWhereOthersMayCome) {
  auto first = leader(0), second = leader(1);
  auto follower = up(Role::kWorker, 2, 0, 1);
  auto store = up(Role::kStore, 9);
  for (const auto& lost : {first, follower, store}) membership.on_down(lost, kGone);
  const auto series = [&] {
    int found = 0;
    for (const int rank : {1, 2, 9})
      found += count("lowkey_rank_up", "peer_rank=\"" + std::to_string(rank) + "\"") == 0;
    return found;
  };
  const TimePoint later = Clock::now() + std::chrono::hours(1);
  membership.forget_lost(later);
  EXPECT_EQ(series(), 3) << "nobody can come in their place";
  membership.forget_lost_after(std::chrono::minutes(10));
  membership.forget_lost(Clock::now() + std::chrono::minutes(9));
  EXPECT_EQ(series(), 3);
  EXPECT_NE(membership.find(0), nullptr);
  membership.forget_lost(later);
  EXPECT_EQ(series(), 0);
  EXPECT_EQ(membership.find(0), nullptr);
  EXPECT_EQ(membership.not_ready_reason(), "");
  EXPECT_EQ(count("lowkey_replicas", "state=\"gone\""), 0);
  EXPECT_EQ(count("lowkey_rank_up", "peer_rank=\"3\""), 1);
}

TEST_F(MembershipTest, SeatsThatNobodyTakesAreGivenAgain) {
  const TimePoint now = Clock::now();
  const Seat seat = *membership.on_join(2, now);
  EXPECT_NE(membership.on_join(2, now)->replica, seat.replica);
  const TimePoint later = now + Membership::kSeatDeadline + std::chrono::seconds(1);
  EXPECT_EQ(membership.on_join(2, later)->replica, seat.replica);
}

TEST_F(MembershipTest, ReplicasAreBounded) {
  std::vector<transport::ConnectionPtr> all;
  for (size_t i = 0; i < Membership::kMaxReplicas; ++i) all.push_back(leader(static_cast<int>(i)));
  EXPECT_EQ(membership.on_join(1).error().code, Code::kResourceExhausted);
  membership.on_down(all[3], kGone);
  membership.on_down(all[2], kGone);
  EXPECT_TRUE(membership.on_join(1).ok());
  EXPECT_EQ(membership.find(3), nullptr);  // the longest lost one
  EXPECT_NE(membership.find(2), nullptr);
}

TEST_F(MembershipTest, ComesBackAndIsReadopted) {
  auto first = leader(0);
  auto twin = up(Role::kWorker, 1, 0, 0);
  EXPECT_FALSE(membership.is_member(twin));  // its replica has a leader: refused
  EXPECT_EQ(count("lowkey_membership_events_total", "event=\"refused\""), 1);
  membership.on_down(first, kGone);
  EXPECT_EQ(count("lowkey_replicas", "state=\"gone\""), 1);
  leader(0);
  EXPECT_EQ(count("lowkey_membership_events_total", "event=\"readopted\""), 1);
  EXPECT_EQ(count("lowkey_replicas", "state=\"gone\""), 0);
  EXPECT_TRUE(membership.ready());
  membership.expect_readoption();  // started again: it has never seen those that come
  up(Role::kStore, 9);
  EXPECT_EQ(count("lowkey_membership_events_total", "event=\"readopted\""), 2);
  const Seat seat = *membership.on_join(1);
  up(Role::kWorker, seat.first_rank, seat.replica, 0);
  EXPECT_EQ(count("lowkey_membership_events_total", "event=\"readopted\""), 2);
}

}  // namespace
}  // namespace lowkey::coordinator
