#include "cli/cluster_roster.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include "base/log.h"
#include "coordinator/membership/membership.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::cli {
namespace {

using transport::ConnectionPtr;
using transport::MessageType;
using transport::Role;

// With no replica left and none that could join, a supervisor should get the chance to start the cluster
// anew; until then /ready and /metrics tell what happened.
constexpr auto kNoReplicaGrace = std::chrono::seconds(10);
// Members that are lost may come back, or be replaced by others: about those nobody wants to hear any more.
constexpr auto kForgetLost = std::chrono::minutes(10);
constexpr uint32_t kMaxRanks = 1024;
constexpr uint32_t kMaxDrainSeconds = 3600;

bool is_joining(const transport::PeerInfo& peer) {
  return peer.role != Role::kCoordinator && peer.replica < 0;
}

std::string name_of_visitor(const transport::PeerInfo& peer) {
  return fmt::format("a {} without a place", to_string(peer.role));
}

template <class Message>
bool parse(Message* message, const ConnectionPtr& peer, std::string_view body) {
  if (message->ParseFromArray(body.data(), static_cast<int>(body.size()))) return true;
  peer->close("malformed " + message->GetTypeName());
  return false;
}

template <class Message>
void send(const ConnectionPtr& peer, MessageType type, const Message& message) {
  if (const Status sent = peer->send(type, message.SerializeAsString()); !sent.ok()) {
    spdlog::warn("{} to {} {}: {}", message.GetTypeName(), to_string(peer->peer().role),
                 peer->peer().world_rank, sent.error().message);
  }
}

}  // namespace

ClusterRoster::ClusterRoster(boost::asio::io_context& io, coordinator::Membership& membership,
                             const Options& options)
    : options_(options),
      io_(io),
      membership_(membership),
      settled_(Clock::now() + (options.alone ? options.settle : Duration::zero())),
      none_left_(io) {
  if (options.alone) {
    membership.expect_readoption();
  } else {
    membership.reserve(options.job_replicas, options.job_ranks);
  }
  if (options.open) membership.forget_lost_after(std::max<Duration>(kForgetLost, options.reconnect));
  membership.on_idle = [this](int replica) {
    // Not from inside whatever has just noticed it.
    boost::asio::post(io_, [this, replica] { let_go(replica); });
  };
}

transport::ControlHandlers ClusterRoster::wrap(transport::ControlHandlers inner) {
  inner_ = std::move(inner);
  return {
      .on_up = [this](const ConnectionPtr& peer) { up(peer); },
      .on_message = [this](const ConnectionPtr& peer, MessageType type,
                           std::string_view body) { message(peer, type, body); },
      .on_down = [this](const ConnectionPtr& peer, const Error& error) { down(peer, error); },
  };
}

void ClusterRoster::end() {
  ending_ = true;
  none_left_.cancel();
}

void ClusterRoster::up(const ConnectionPtr& peer) {
  const transport::PeerInfo& info = peer->peer();
  if (is_joining(info)) return visit(peer);
  if (info.role == Role::kCoordinator) return peer->close("this cluster has a coordinator");
  Member& member = members_[{info.role, info.world_rank}];
  if (const ConnectionPtr before = std::exchange(member.connection, peer)) {
    // It lost us before we noticed; whatever was in flight there is gone.
    replaced_.insert(before->id());
    if (inner_.on_down)
      inner_.on_down(before, {Code::kUnavailable, "it has lost its connection and made another", {}});
    before->close("replaced");
  }
  if (info.role == Role::kWorker) replicas_.insert(info.replica);
  if (inner_.on_up) inner_.on_up(peer);
  if (info.role == Role::kWorker) send_stores(peer);
}

void ClusterRoster::message(const ConnectionPtr& peer, MessageType type, std::string_view body) {
  if (is_joining(peer->peer())) {
    if (type == MessageType::kJoin) return on_join(peer, body);
    return peer->close("a process without a place in the cluster may only ask for one");
  }
  switch (type) {
    case MessageType::kIntroduce:
      return introduce(peer, body);
    case MessageType::kLeave:
      return on_leave(peer, body);
    default:
      if (inner_.on_message) inner_.on_message(peer, type, body);
  }
}

void ClusterRoster::down(const ConnectionPtr& peer, const Error& error) {
  const transport::PeerInfo& info = peer->peer();
  if (joining_.erase(peer->id()) > 0 || replaced_.erase(peer->id()) > 0 || is_joining(info)) return;
  const auto member = members_.find({info.role, info.world_rank});
  if (member == members_.end() || member->second.connection != peer) return;
  members_.erase(member);
  if (!ending_ && info.world_rank < options_.job_ranks) ++departures_;
  if (inner_.on_down) inner_.on_down(peer, error);
  if (info.role == Role::kStore) {
    leaving_stores_.erase(info.world_rank);
    tell_stores();
  }
  if (info.role != Role::kWorker) return;
  if (info.replica_rank == 0) leaving_.erase(info.replica);
  lose(info);
}

void ClusterRoster::visit(const ConnectionPtr& peer) {
  if (joining_.size() >= kMaxJoining) {
    membership_.note_refused(name_of_visitor(peer->peer()), "too many ask to join");
    return peer->close("too many ask to join");
  }
  expect(joining_.emplace(peer->id(), Visitor{peer, boost::asio::steady_timer(io_)}).first,
         "asked for a place");
}

// Instead of what it waits for now: that may have run out already, and nothing but its number tells it from
// this.
void ClusterRoster::wait(Visitors::iterator visitor, TimePoint until,
                         std::function<void(Visitors::iterator)> then) {
  Visitor& waiting = visitor->second;
  waiting.timer.expires_at(until);
  waiting.timer.async_wait([this, id = visitor->first, number = ++waiting.waits,
                            then = std::move(then)](boost::system::error_code failure) {
    const auto found = joining_.find(id);
    if (!failure && found != joining_.end() && found->second.waits == number) then(found);
  });
}

void ClusterRoster::expect(Visitors::iterator visitor, const char* what) {
  wait(visitor, Clock::now() + options_.join_deadline, [this, what](Visitors::iterator late) {
    const ConnectionPtr peer = late->second.connection;
    joining_.erase(late);
    const std::string reason = fmt::format("has not {} within {} s", what, seconds(options_.join_deadline));
    membership_.note_timed_out(name_of_visitor(peer->peer()), reason);
    peer->close(reason);
  });
}

void ClusterRoster::on_join(const ConnectionPtr& peer, std::string_view body) {
  wire::Join join;
  const auto visitor = joining_.find(peer->id());
  if (visitor == joining_.end() || !parse(&join, peer, body)) return;
  if (join.ranks() < 1 || join.ranks() > kMaxRanks) return peer->close("ranks out of range");
  if (std::exchange(visitor->second.asked, true)) return peer->close("has asked for a place before");
  wait(
      visitor, std::max(settled_, Clock::now()),
      [this, ranks = static_cast<int>(join.ranks())](Visitors::iterator waiting) { answer(waiting, ranks); });
}

void ClusterRoster::answer(Visitors::iterator visitor, int ranks) {
  const ConnectionPtr peer = visitor->second.connection;
  expect(visitor, "hung up after its answer");
  wire::Joined joined;
  const bool store = peer->peer().role == Role::kStore;
  const auto seat = seat_of(peer->peer(), ranks);
  if (!seat.ok()) {
    membership_.note_refused(store ? "a store that asked to join"
                                   : fmt::format("a replica of {} rank(s) that asked to join", ranks),
                             seat.error().message);
    joined.set_refusal(seat.error().message);
    joined.set_refusal_code(static_cast<uint32_t>(seat.error().code));
  } else {
    joined.set_replica(seat->replica);
    joined.set_first_world_rank(seat->first_rank);
    spdlog::info("{} joins: ranks {} to {}", store ? "a store" : fmt::format("replica {}", seat->replica),
                 seat->first_rank, seat->first_rank + ranks - 1);
  }
  send(peer, MessageType::kJoined, joined);
}

Result<coordinator::Seat> ClusterRoster::seat_of(const transport::PeerInfo& peer, int ranks) {
  LOWKEY_TRY(may_join(peer));
  if (peer.role != Role::kStore) return membership_.on_join(ranks);
  LOWKEY_ASSIGN(rank, membership_.on_store_join());
  return coordinator::Seat{.replica = 0, .first_rank = rank};
}

Status ClusterRoster::may_join(const transport::PeerInfo& peer) const {
  if (ending_) return Error{Code::kUnavailable, "the cluster is ending", {}};
  if (!options_.open) return Error{Code::kUsage, "this cluster was started without --cluster-port", {}};
  if (peer.role == Role::kStore) return {};
  for (const auto& [key, member] : members_) {
    const transport::PeerInfo& other = member.connection->peer();
    if (other.role != Role::kWorker || other.layout_fingerprint == peer.layout_fingerprint) continue;
    return Error{
        Code::kUsage,
        fmt::format("--recipe, --profile, --dtype and the number of ranks must be those of replica {}: "
                    "layout fingerprint {}, expected {}",
                    other.replica, peer.layout_fingerprint.hex(), other.layout_fingerprint.hex()),
        {}};
  }
  return {};
}

void ClusterRoster::introduce(const ConnectionPtr& peer, std::string_view body) {
  wire::Introduce message;
  const auto member = members_.find({peer->peer().role, peer->peer().world_rank});
  if (!parse(&message, peer, body) || member == members_.end()) return;
  member->second.control_address = message.control_address();
  if (peer->peer().role == Role::kStore) tell_stores();
}

void ClusterRoster::on_leave(const ConnectionPtr& peer, std::string_view body) {
  wire::Leave leave;
  const transport::PeerInfo& info = peer->peer();
  if (!parse(&leave, peer, body)) return;
  if (info.role == Role::kStore) {  // it tells the workers itself
    leaving_stores_.insert(info.world_rank);
    return tell_stores();
  }
  if (info.role != Role::kWorker || info.replica_rank != 0) return peer->close("leads no replica");
  auto& timer = leaving_[info.replica];
  if (timer) return;  // asked before
  timer = std::make_shared<boost::asio::steady_timer>(
      io_, std::chrono::seconds(std::min(leave.drain_seconds(), kMaxDrainSeconds)));
  timer->async_wait(
      [this, weak = std::weak_ptr(timer), replica = info.replica](boost::system::error_code failure) {
        const auto patience = weak.lock();
        const auto leaving = leaving_.find(replica);
        // Once it has left, its number may be another one's.
        if (!failure && patience && leaving != leaving_.end() && leaving->second == patience) let_go(replica);
      });
  membership_.on_leaving(info.replica);
}

// What it still answers then goes on elsewhere, or ends.
void ClusterRoster::let_go(int replica) {
  leaving_.erase(replica);
  const auto members = members_;  // closing one may call down()
  for (const auto& [key, member] : members) {
    const transport::PeerInfo& other = member.connection->peer();
    if (other.role != Role::kWorker || other.replica != replica) continue;
    send(member.connection, MessageType::kLeave, wire::Leave());
    member.connection->close("the replica has left");
  }
}

void ClusterRoster::send_stores(const ConnectionPtr& worker) const {
  wire::Stores stores;
  for (const auto& [key, member] : members_) {
    if (key.first != Role::kStore || member.control_address.empty() || leaving_stores_.contains(key.second))
      continue;
    wire::StoreAddress& store = *stores.add_stores();
    store.set_world_rank(key.second);
    store.set_control_address(member.control_address);
  }
  send(worker, MessageType::kStores, stores);
}

void ClusterRoster::tell_stores() const {
  for (const auto& [key, member] : members_) {
    if (key.first == Role::kWorker) send_stores(member.connection);
  }
}

// A replica that has lost a rank does not come back, unless it dials.
void ClusterRoster::lose(const transport::PeerInfo& peer) {
  broken_.insert(peer.replica);
  if (ending_ || options_.open || broken_.size() < replicas_.size()) return;
  none_left_.expires_after(kNoReplicaGrace);
  none_left_.async_wait([this](boost::system::error_code failure) {
    if (!failure) on_none_left();
  });
}

}  // namespace lowkey::cli
