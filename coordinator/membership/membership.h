// Which workers and stores the cluster has, which of them answer, and which replicas can serve. They come and
// go at any time: a replica asks for a seat (on_join), its ranks connect (on_up), it announces that it leaves
// (on_leaving), is told once nothing of ours runs there (on_idle), and goes (on_down); or it is lost, and
// perhaps connects again later. The messages themselves are the business of whoever dials. I/O thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "coordinator/membership/replica.h"
#include "transport/control_plane.h"

namespace lowkey::wire {
class ReplicaState;
}
namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::coordinator {

// The ids of a replica that joins: its own, and the world rank of its leader; its other ranks follow.
struct Seat {
  int replica = 0;
  int first_rank = 0;
};

class Membership {
 public:
  // Replicas that are remembered, lost ones included; the longest lost is forgotten first.
  static constexpr size_t kMaxReplicas = 1024;
  static constexpr size_t kMaxStores = 256;  // that have joined, lost ones included
  // A seat that nobody has taken by then is given to others.
  static constexpr Duration kSeatDeadline = std::chrono::seconds(120);

  // Feeds lowkey_rank_up, lowkey_ready, lowkey_replicas and lowkey_membership_events_total.
  explicit Membership(monitoring::Metrics& metrics);

  // The ids of those that were started together with the coordinator: seats are given above them.
  void reserve(int replicas, int world_ranks);
  // In a cluster that others may join: who has been lost for so long is forgotten, and its series with it, as
  // it may have been replaced. In others nobody can come in its place, and a loss stands until the cluster
  // ends.
  void forget_lost_after(Duration patience) { forget_after_ = patience; }
  // To be called now and then: whenever somebody looks.
  void forget_lost(TimePoint now = Clock::now());
  // The coordinator was started again, alone: whoever comes with ids that are not a seat of ours is
  // readopted.
  void expect_readoption() { readopting_ = true; }

  // A replica of `ranks` workers wants to join. Its ranks connect with the ids of its seat as their PeerInfo.
  // Until then it is a visitor, with a negative replica or world rank, and no member. kResourceExhausted:
  // every seat is taken by a replica that is there; kInvalidArgument: ranks < 1.
  Result<Seat> on_join(int ranks, TimePoint now = Clock::now());
  // A store wants to join: its world rank, the one of a store that is gone where there is one, so that it
  // finds again what that left on disk. kResourceExhausted: kMaxStores of them.
  Result<int> on_store_join(TimePoint now = Clock::now());
  // Somebody was turned away for a reason of the caller's.
  void note_refused(const std::string& who, const std::string& reason);
  // Somebody who asked to join, or should have, kept the caller waiting.
  void note_timed_out(const std::string& who, const std::string& reason);
  // No new requests for it from now on; on_idle follows, possibly from inside. False: there is no such
  // replica.
  bool on_leaving(int replica);
  std::function<void(int replica)> on_idle;  // a leaving replica answers nothing of ours any more

  // False: it was refused, a leader of a replica that has one (perhaps itself, not known to be dead yet).
  bool on_up(const transport::ConnectionPtr& connection);
  // The id of the replica that is lost with it, its leader or another of its ranks, or -1. What a replica
  // without one of its ranks was answering will not end.
  int on_down(const transport::ConnectionPtr& connection, const Error& reason);
  void on_state(const transport::ConnectionPtr& connection, const wire::ReplicaState& state);

  // One request of ours more, one less there.
  void note_submitted(int replica);
  void note_ended(int replica);

  const std::map<int, Replica>& replicas() const { return replicas_; }
  const Replica* find(int id) const;
  size_t ready_replicas() const;
  bool ready() const { return ready_replicas() > 0; }
  std::string not_ready_reason() const;  // one line naming every replica that cannot serve
  // Longest prompt + answer that some replica that can serve takes; 0: none has told.
  uint64_t max_sequence_tokens() const;

  // Feeds lowkey_rank_up: a peer that is connected but leaves a question unanswered is not up.
  void note_answer(const transport::PeerInfo& peer, bool answered) { publish_rank(peer, answered); }

  // Every member that is connected now.
  std::vector<transport::ConnectionPtr> peers() const;
  // It is a member, not a visitor that asks for a seat, nor a connection that another has replaced.
  bool is_member(const transport::ConnectionPtr& connection) const;

 private:
  using RankKey = std::pair<int, int>;  // role, world rank
  struct Rank {
    transport::PeerInfo info;
    transport::ConnectionPtr connection;  // null: lost; its series stays at 0 until it is forgotten
    TimePoint lost_at{};
  };
  using Ranks = std::map<RankKey, Rank>;
  struct GivenSeat {
    Seat seat;
    int ranks = 1;
    TimePoint given{};
  };
  void note_arrival(const transport::PeerInfo& peer);
  bool note_departure(const transport::PeerInfo& peer, const Error& reason);  // true: it has left
  void forget_replica(int replica);
  Ranks::iterator forget_rank(Ranks::iterator rank);
  bool make_room();
  void tell_when_idle(const Replica& replica);
  void publish();
  void publish_rank(const transport::PeerInfo& info, bool up);

  monitoring::Metrics& metrics_;
  Ranks ranks_;  // bounded by kMaxReplicas and the replicas' sizes
  std::map<int, Replica> replicas_;
  std::map<int, TimePoint> lost_at_;      // of replicas without a leader
  std::map<int, GivenSeat> seats_;        // by replica; taken or still to be taken
  std::vector<GivenSeat> free_seats_;     // of replicas that have left: given again to as many ranks
  std::map<int, TimePoint> store_seats_;  // until when nobody else gets them, by world rank
  std::optional<Duration> forget_after_;
  int next_replica_ = 0;
  int next_rank_ = 1;  // 0 is the coordinator
  bool readopting_ = false;
};

}  // namespace lowkey::coordinator
