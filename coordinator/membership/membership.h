// Which workers and stores the cluster has, which of them answer, and which replicas can serve. Fed by the
// control plane's callbacks; I/O thread only.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "transport/control_plane.h"

namespace lowkey::wire {
class ReplicaState;
}
namespace lowkey::monitoring {
class Metrics;
}

namespace lowkey::coordinator {

struct Replica {
  int id = 0;
  transport::ConnectionPtr leader;  // null while it is gone
  bool ready = false;               // as the leader says: every rank answered within its deadline
  std::string reason;               // why not
  uint32_t running = 0;             // as last reported
  uint32_t waiting = 0;
  uint64_t max_sequence_tokens = 0;  // longest prompt + answer that can ever fit; 0: not told yet
  uint32_t in_flight = 0;            // requests of ours that it is answering

  std::map<int, std::string> lost_followers;  // replica rank -> reason; back when they reconnect

  bool can_serve() const { return leader != nullptr && ready && lost_followers.empty(); }
};

class Membership {
 public:
  // Feeds lowkey_rank_up and lowkey_ready.
  explicit Membership(monitoring::Metrics& metrics);

  void on_up(const transport::ConnectionPtr& connection);
  // The id of the replica that lost its leader, or -1.
  int on_down(const transport::ConnectionPtr& connection, const Error& reason);
  void on_state(const transport::ConnectionPtr& connection, const wire::ReplicaState& state);

  const std::map<int, Replica>& replicas() const { return replicas_; }
  Replica* find(int id);
  size_t ready_replicas() const;
  bool ready() const { return ready_replicas() > 0; }
  std::string not_ready_reason() const;  // one line naming every replica that cannot serve
  // Longest prompt + answer that some replica that can serve takes; 0: none has told.
  uint64_t max_sequence_tokens() const;

  // Feeds lowkey_rank_up: a peer that is connected but leaves a question unanswered is not up.
  void note_answer(const transport::PeerInfo& peer, bool answered) { publish_rank(peer, answered); }

  // Every peer that is connected now.
  std::vector<transport::ConnectionPtr> peers() const;

 private:
  struct Rank {
    transport::PeerInfo info;
    transport::ConnectionPtr connection;  // null: lost; its series stays at 0
  };
  void publish_ready();
  void publish_rank(const transport::PeerInfo& info, bool up);

  monitoring::Metrics& metrics_;
  std::map<std::pair<int, int>, Rank> ranks_;  // by (role, world rank); as many as the cluster ever had
  std::map<int, Replica> replicas_;
};

}  // namespace lowkey::coordinator
