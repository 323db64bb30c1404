#include "coordinator/membership/membership.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>

#include "coordinator/membership/state_report.h"
#include "monitoring/metrics.h"

namespace lowkey::coordinator {

using monitoring::Metric;
using transport::Role;

namespace {

bool is_leader(const transport::PeerInfo& peer) {
  return peer.role == Role::kWorker && peer.replica_rank == 0;
}

bool is_visitor(const transport::PeerInfo& peer) {
  return peer.world_rank < 0 || (peer.role == Role::kWorker && peer.replica < 0);
}

std::pair<int, int> key_of(const transport::PeerInfo& peer) {
  return {static_cast<int>(peer.role), peer.world_rank};
}

monitoring::Labels labels_of(const transport::PeerInfo& peer) {
  return {{"peer_role", transport::to_string(peer.role)}, {"peer_rank", std::to_string(peer.world_rank)}};
}

std::string name_of(const transport::PeerInfo& peer) {
  if (peer.role == Role::kStore) return fmt::format("store (rank {})", peer.world_rank);
  return fmt::format("rank {} of replica {} (rank {})", peer.replica_rank, peer.replica, peer.world_rank);
}

}  // namespace

Membership::Membership(monitoring::Metrics& metrics) : metrics_(metrics) {
  publish();
}

void Membership::reserve(int replicas, int world_ranks) {
  next_replica_ = std::max(next_replica_, replicas);
  next_rank_ = std::max(next_rank_, world_ranks);
}

Result<Seat> Membership::on_join(int ranks, TimePoint now) {
  if (ranks < 1)
    return Error{Code::kInvalidArgument,
                 fmt::format("a replica that joins has at least one rank, found {}", ranks)};
  for (auto seat = seats_.begin(); seat != seats_.end();) {
    const bool taken = replicas_.count(seat->first) > 0;
    if (!taken && now - seat->second.given > kSeatDeadline) {
      free_seats_.push_back(seat->second);
      seat = seats_.erase(seat);
    } else {
      ++seat;
    }
  }
  GivenSeat given{.ranks = ranks, .given = now};
  const auto fits = std::find_if(free_seats_.begin(), free_seats_.end(),
                                 [&](const GivenSeat& free) { return free.ranks == ranks; });
  if (fits != free_seats_.end()) {
    given.seat = fits->seat;
    free_seats_.erase(fits);
  } else {
    if (seats_.size() + replicas_.size() >= kMaxReplicas && !make_room()) {
      return Error{Code::kResourceExhausted,
                   fmt::format("the cluster has {} replicas, its limit", replicas_.size())};
    }
    given.seat = {.replica = next_replica_, .first_rank = next_rank_};
    ++next_replica_;
    next_rank_ += ranks;
  }
  seats_[given.seat.replica] = given;
  return given.seat;
}

Result<int> Membership::on_store_join(TimePoint now) {
  const auto free = std::find_if(store_seats_.begin(), store_seats_.end(), [&](const auto& seat) {
    const auto known = ranks_.find({static_cast<int>(Role::kStore), seat.first});
    const bool came = known != ranks_.end();
    return came ? known->second.connection == nullptr : now > seat.second;
  });
  if (free == store_seats_.end() && store_seats_.size() >= kMaxStores)
    return Error{Code::kResourceExhausted,
                 fmt::format("the cluster has {} stores that joined, its limit", store_seats_.size())};
  const int rank = free == store_seats_.end() ? next_rank_++ : free->first;
  store_seats_[rank] = now + kSeatDeadline;
  return rank;
}

// Forgets the replica that has been lost for longest; false: none is lost.
bool Membership::make_room() {
  const auto longest = std::min_element(lost_at_.begin(), lost_at_.end(),
                                        [](const auto& a, const auto& b) { return a.second < b.second; });
  if (longest == lost_at_.end()) return false;
  forget_replica(longest->first);
  publish();
  return true;
}

void Membership::note_refused(const std::string& who, const std::string& reason) {
  spdlog::warn("{} was refused: {}", who, reason);
  metrics_.add(Metric::kMembershipEvents, 1, {{"event", "refused"}});
}

void Membership::note_timed_out(const std::string& who, const std::string& reason) {
  spdlog::warn("{} {}", who, reason);
  metrics_.add(Metric::kMembershipEvents, 1, {{"event", "timed_out"}});
}

bool Membership::on_leaving(int id) {
  const auto found = replicas_.find(id);
  if (found == replicas_.end() || !found->second.leader) return false;
  Replica& replica = found->second;
  if (replica.draining) return true;
  replica.draining = true;
  spdlog::info("replica {} is leaving: {} requests in flight", id, replica.in_flight);
  publish();
  tell_when_idle(replica);
  return true;
}

void Membership::tell_when_idle(const Replica& replica) {
  if (replica.draining && replica.in_flight == 0 && on_idle) on_idle(replica.id);
}

bool Membership::on_up(const transport::ConnectionPtr& connection) {
  const auto& peer = connection->peer();
  if (peer.role == Role::kCoordinator || is_visitor(peer)) return true;
  if (const Replica* held = find(peer.replica); is_leader(peer) && held && held->leader) {
    note_refused(name_of(peer), "that replica has a leader");
    connection->close(fmt::format("replica {} has a leader: ask for a seat", peer.replica));
    return false;
  }
  note_arrival(peer);
  ranks_[key_of(peer)] = Rank{peer, connection};
  publish_rank(peer, true);
  if (is_leader(peer)) {
    replicas_[peer.replica] =
        Replica{.id = peer.replica, .leader = connection, .reason = "has not reported yet"};
    lost_at_.erase(peer.replica);
  } else if (peer.role == Role::kWorker) {
    const auto replica = replicas_.find(peer.replica);
    if (replica != replicas_.end()) replica->second.lost_followers.erase(peer.replica_rank);
  }
  publish();
  return true;
}

void Membership::note_arrival(const transport::PeerInfo& peer) {
  const bool known = ranks_.count(key_of(peer)) > 0;
  const bool seated = peer.role == Role::kWorker && seats_.count(peer.replica) > 0;
  const bool readopted = known || (readopting_ && !seated);
  metrics_.add(Metric::kMembershipEvents, 1, {{"event", readopted ? "readopted" : "joined"}});
  if (readopted) spdlog::info("{} is back", name_of(peer));
  if (peer.role == Role::kWorker) next_replica_ = std::max(next_replica_, peer.replica + 1);
  next_rank_ = std::max(next_rank_, peer.world_rank + 1);
}

int Membership::on_down(const transport::ConnectionPtr& connection, const Error& reason) {
  const auto& peer = connection->peer();
  const auto rank = ranks_.find(key_of(peer));
  if (rank == ranks_.end() || rank->second.connection != connection) return -1;
  rank->second.connection = nullptr;
  rank->second.lost_at = Clock::now();
  publish_rank(peer, false);
  const bool left = note_departure(peer, reason);
  const auto found = replicas_.find(peer.replica);
  if (left && (peer.role == Role::kStore || found == replicas_.end())) forget_rank(rank);
  if (peer.role != Role::kWorker || found == replicas_.end()) {
    publish();
    return -1;
  }
  Replica& replica = found->second;
  if (!is_leader(peer)) {
    // Its leader may not have noticed yet and go on calling the replica ready.
    replica.lost_followers[peer.replica_rank] = reason.message;
  } else if (replica.draining) {
    forget_replica(replica.id);
  } else {
    replica.leader = nullptr;
    replica.ready = false;
    replica.in_flight = 0;
    replica.reason = fmt::format("its leader is gone: {}", reason.message);
    lost_at_[replica.id] = Clock::now();
  }
  publish();
  return peer.replica;
}

bool Membership::note_departure(const transport::PeerInfo& peer, const Error& reason) {
  const auto replica = replicas_.find(peer.replica);
  const bool leaving = peer.role == Role::kWorker && (replica == replicas_.end() || replica->second.draining);
  const bool left = leaving || reason.code == Code::kCancelled;
  spdlog::info("{} has {}: {}", name_of(peer), left ? "left" : "been lost", reason.message);
  metrics_.add(Metric::kMembershipEvents, 1, {{"event", left ? "left" : "lost"}});
  return left;
}

void Membership::forget_replica(int id) {
  if (const auto seat = seats_.find(id); seat != seats_.end()) {
    free_seats_.push_back(seat->second);
    seats_.erase(seat);
  }
  replicas_.erase(id);
  lost_at_.erase(id);
  for (auto rank = ranks_.begin(); rank != ranks_.end();) {
    const bool gone = rank->second.info.role == Role::kWorker && rank->second.info.replica == id &&
                      rank->second.connection == nullptr;
    rank = gone ? forget_rank(rank) : std::next(rank);
  }
}

Membership::Ranks::iterator Membership::forget_rank(Ranks::iterator rank) {
  const transport::PeerInfo& info = rank->second.info;
  metrics_.remove(Metric::kRankUp, labels_of(info));
  if (const auto seat = store_seats_.find(info.world_rank);
      info.role == Role::kStore && seat != store_seats_.end())
    seat->second = TimePoint::min();
  return ranks_.erase(rank);
}

void Membership::forget_lost(TimePoint now) {
  if (!forget_after_) return;
  const TimePoint before = now - *forget_after_;
  std::vector<int> replicas;
  for (const auto& [id, at] : lost_at_)
    if (at < before) replicas.push_back(id);
  for (const int id : replicas) {
    spdlog::info("replica {} has not come back: forgotten", id);
    forget_replica(id);
  }
  for (auto rank = ranks_.begin(); rank != ranks_.end();) {
    const bool gone = rank->second.connection == nullptr && rank->second.lost_at < before;
    rank = gone ? forget_rank(rank) : std::next(rank);
  }
  publish();
}

void Membership::on_state(const transport::ConnectionPtr& connection, const wire::ReplicaState& state) {
  const auto found = replicas_.find(connection->peer().replica);
  if (found == replicas_.end() || found->second.leader != connection) {
    spdlog::warn("replica state from a peer that leads none (rank {})", connection->peer().world_rank);
    return;
  }
  Replica& replica = found->second;
  const bool was_ready = replica.ready;
  take_report(state, replica);
  if (replica.ready != was_ready) {
    spdlog::info("replica {} {}", replica.id,
                 replica.ready ? "is ready" : fmt::format("is not ready: {}", replica.reason));
  }
  publish();
}

void Membership::note_submitted(int id) {
  if (const auto found = replicas_.find(id); found != replicas_.end()) ++found->second.in_flight;
}

void Membership::note_ended(int id) {
  const auto found = replicas_.find(id);
  if (found == replicas_.end() || found->second.in_flight == 0) return;
  --found->second.in_flight;
  tell_when_idle(found->second);
}

const Replica* Membership::find(int id) const {
  const auto found = replicas_.find(id);
  return found == replicas_.end() ? nullptr : &found->second;
}

size_t Membership::ready_replicas() const {
  return std::count_if(replicas_.begin(), replicas_.end(),
                       [](const auto& entry) { return entry.second.can_serve(); });
}

std::string Membership::not_ready_reason() const {
  if (replicas_.empty()) return "no replica is there";
  std::string reasons;
  for (const auto& [id, replica] : replicas_) {
    if (replica.can_serve()) continue;
    reasons += fmt::format("{}replica {}: ", reasons.empty() ? "" : "; ", id);
    if (replica.draining) {
      reasons += "it is leaving";
    } else if (replica.leader && !replica.lost_followers.empty()) {
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

bool Membership::is_member(const transport::ConnectionPtr& connection) const {
  const auto rank = ranks_.find(key_of(connection->peer()));
  return rank != ranks_.end() && rank->second.connection == connection;
}

void Membership::publish() {
  metrics_.set(Metric::kReady, ready() ? 1 : 0);
  std::array<int, 4> counts{};
  for (const auto& [id, replica] : replicas_) ++counts[static_cast<int>(replica.phase())];
  for (int phase = 0; phase < static_cast<int>(counts.size()); ++phase)
    metrics_.set(Metric::kReplicas, counts[phase], {{"state", to_string(static_cast<ReplicaPhase>(phase))}});
}

void Membership::publish_rank(const transport::PeerInfo& info, bool up) {
  metrics_.set(Metric::kRankUp, up ? 1 : 0, labels_of(info));
}

}  // namespace lowkey::coordinator
