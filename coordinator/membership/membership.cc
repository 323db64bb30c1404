#include "coordinator/membership/membership.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "monitoring/metrics.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {

using monitoring::Metric;
using transport::Role;

namespace {

bool is_leader(const transport::PeerInfo& peer) {
  return peer.role == Role::kWorker && peer.replica_rank == 0;
}

std::pair<int, int> key_of(const transport::PeerInfo& peer) {
  return {static_cast<int>(peer.role), peer.world_rank};
}

}  // namespace

Membership::Membership(monitoring::Metrics& metrics) : metrics_(metrics) {
  publish_ready();
}

void Membership::on_up(const transport::ConnectionPtr& connection) {
  const auto& peer = connection->peer();
  if (peer.role == Role::kCoordinator) return;
  ranks_[key_of(peer)] = Rank{peer, connection};
  publish_rank(peer, true);
  if (!is_leader(peer)) {
    const auto replica = replicas_.find(peer.replica);
    if (peer.role == Role::kWorker && replica != replicas_.end())
      replica->second.lost_followers.erase(peer.replica_rank);
    return publish_ready();
  }
  Replica& replica = replicas_[peer.replica];
  replica = Replica{.id = peer.replica, .leader = connection, .reason = "has not reported yet"};
  publish_ready();
}

int Membership::on_down(const transport::ConnectionPtr& connection, const Error& reason) {
  const auto& peer = connection->peer();
  const auto rank = ranks_.find(key_of(peer));
  if (rank == ranks_.end() || rank->second.connection != connection) return -1;
  rank->second.connection = nullptr;
  publish_rank(peer, false);
  const auto replica = replicas_.find(peer.replica);
  if (peer.role != Role::kWorker || replica == replicas_.end()) return -1;
  if (replica->second.leader != connection) {
    // A follower: its leader may not have noticed yet and go on calling the replica ready.
    replica->second.lost_followers[peer.replica_rank] = reason.message;
    publish_ready();
    return -1;
  }
  replica->second.leader = nullptr;
  replica->second.ready = false;
  replica->second.in_flight = 0;
  replica->second.reason = fmt::format("its leader is gone: {}", reason.message);
  publish_ready();
  return peer.replica;
}

void Membership::on_state(const transport::ConnectionPtr& connection, const wire::ReplicaState& state) {
  const auto found = replicas_.find(connection->peer().replica);
  if (found == replicas_.end() || found->second.leader != connection) {
    spdlog::warn("replica state from a peer that leads none (rank {})", connection->peer().world_rank);
    return;
  }
  Replica& replica = found->second;
  if (replica.ready != state.ready()) {
    spdlog::info("replica {} {}", replica.id,
                 state.ready() ? "is ready" : fmt::format("is not ready: {}", state.not_ready_reason()));
  }
  replica.ready = state.ready();
  replica.reason = state.not_ready_reason();
  replica.running = state.running();
  replica.waiting = state.waiting();
  replica.max_sequence_tokens = state.max_sequence_tokens();
  publish_ready();
}

Replica* Membership::find(int id) {
  const auto found = replicas_.find(id);
  return found == replicas_.end() ? nullptr : &found->second;
}

size_t Membership::ready_replicas() const {
  return std::count_if(replicas_.begin(), replicas_.end(),
                       [](const auto& entry) { return entry.second.can_serve(); });
}

std::string Membership::not_ready_reason() const {
  if (replicas_.empty()) return "no replica has joined yet";
  std::string reasons;
  for (const auto& [id, replica] : replicas_) {
    if (replica.can_serve()) continue;
    reasons += fmt::format("{}replica {}: ", reasons.empty() ? "" : "; ", id);
    if (replica.leader && !replica.lost_followers.empty()) {
      const auto& [rank, reason] = *replica.lost_followers.begin();
      reasons += fmt::format("rank {} is gone: {}", rank, reason);
    } else {
      reasons += replica.reason.empty() ? "not ready" : replica.reason;
    }
  }
  return reasons;
}

uint64_t Membership::max_sequence_tokens() const {
  uint64_t most = 0;
  for (const auto& [id, replica] : replicas_)
    if (replica.can_serve()) most = std::max(most, replica.max_sequence_tokens);
  return most;
}

std::vector<transport::ConnectionPtr> Membership::peers() const {
  std::vector<transport::ConnectionPtr> all;
  for (const auto& [key, rank] : ranks_)
    if (rank.connection) all.push_back(rank.connection);
  return all;
}

void Membership::publish_ready() {
  metrics_.set(Metric::kReady, ready() ? 1 : 0);
}

void Membership::publish_rank(const transport::PeerInfo& info, bool up) {
  metrics_.set(
      Metric::kRankUp, up ? 1 : 0,
      {{"peer_role", transport::to_string(info.role)}, {"peer_rank", std::to_string(info.world_rank)}});
}

}  // namespace lowkey::coordinator
