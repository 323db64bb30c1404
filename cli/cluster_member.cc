#include "cli/cluster_member.h"

#include <boost/asio/io_context.hpp>

#include "base/log.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::cli {
namespace {

using transport::ConnectionPtr;
using transport::MessageType;
using transport::Role;

constexpr auto kAttempt = std::chrono::seconds(3);  // one connection with its handshake
// A coordinator of the same job connects at once; later than this it has ended before it came to that.
constexpr auto kFirstContact = std::chrono::seconds(10);
constexpr auto kFirstPause = std::chrono::milliseconds(100);
constexpr auto kLongestPause = std::chrono::seconds(1);
constexpr auto kStorePause = std::chrono::milliseconds(500);

}  // namespace

ClusterMember::ClusterMember(boost::asio::io_context& io, Options options)
    : options_(std::move(options)),
      io_(io),
      give_up_(Clock::now()),
      coordinator_timer_(io),
      stores_timer_(io) {}

transport::ControlHandlers ClusterMember::wrap(transport::ControlHandlers inner) {
  inner_ = std::move(inner);
  return {.on_up = [this](const ConnectionPtr& peer) { up(peer); },
          .on_message =
              [this](const ConnectionPtr& peer, MessageType type, std::string_view body) {
                const bool from_coordinator = peer->peer().role == Role::kCoordinator;
                if (from_coordinator && type == MessageType::kStores) return read_stores(body);
                if (from_coordinator && type == MessageType::kLeave) return void(was_let_go_ = true);
                const bool from_store = peer->peer().role == Role::kStore;
                if (from_store && type == MessageType::kLeave) leaving_.insert(peer->peer().world_rank);
                inner_.on_message(peer, type, body);
              },
          .on_down = [this](const ConnectionPtr& peer, const Error& error) { down(peer, error); },
          .on_attested = inner_.on_attested};
}

void ClusterMember::attach(transport::ControlPlane& control) {
  control_ = &control;
}

void ClusterMember::set_coordinator(const std::string& address, bool dial) {
  coordinator_address_ = address;
  if (dial) return begin_dialling(std::max<Duration>(options_.reconnect, kAttempt));
  // It may have ended before it came to us.
  const bool can_dial = options_.reconnect > Duration::zero();
  coordinator_timer_.expires_after(kFirstContact);
  coordinator_timer_.async_wait([this, can_dial](boost::system::error_code failure) {
    if (failure || coordinator_) return;
    if (can_dial) return begin_dialling(options_.reconnect);
    options_.on_gave_up({Code::kUnavailable, "the coordinator has not connected", {}});
  });
}

void ClusterMember::begin_dialling(Duration patience) {
  give_up_ = Deadline::in(patience);
  pause_ = kFirstPause;
  dial_coordinator();
}

void ClusterMember::set_stores(std::map<int, std::string> addresses) {
  stores_ = std::move(addresses);
  dial_stores();
}

bool ClusterMember::ask_to_leave(int drain_seconds) {
  wire::Leave leave;
  leave.set_drain_seconds(static_cast<uint32_t>(drain_seconds));
  return coordinator_ && coordinator_->send(MessageType::kLeave, leave.SerializeAsString()).ok();
}

void ClusterMember::up(const ConnectionPtr& peer) {
  const transport::PeerInfo& info = peer->peer();
  if (info.role == Role::kStore) connected_stores_[info.world_rank] = peer;
  if (info.role == Role::kCoordinator) {
    if (coordinator_) coordinator_->close("another coordinator has connected");
    coordinator_ = peer;
    coordinator_timer_.cancel();
    if (was_lost_) spdlog::info("connected to the coordinator again");
    wire::Introduce introduce;
    introduce.set_control_address(control_->address());
    if (const Status sent = peer->send(MessageType::kIntroduce, introduce.SerializeAsString()); !sent.ok())
      spdlog::warn("introduction not sent: {}", sent.error().message);
  }
  if (inner_.on_up) inner_.on_up(peer);
}

void ClusterMember::down(const ConnectionPtr& peer, const Error& error) {
  const transport::PeerInfo& info = peer->peer();
  if (info.role == Role::kStore) {
    if (const auto found = connected_stores_.find(info.world_rank);
        found != connected_stores_.end() && found->second == peer) {
      connected_stores_.erase(found);
      // Either side may also have closed it for an error: then it is dialled again.
      if (leaving_.erase(info.world_rank) > 0) stores_.erase(info.world_rank);
      dial_stores_later();
    }
  }
  if (info.role != Role::kCoordinator) return inner_.on_down(peer, error);
  if (peer != coordinator_) return;  // replaced by the one that is here now
  coordinator_ = nullptr;
  const bool orderly = error.code == Code::kCancelled;
  if (orderly || options_.reconnect <= Duration::zero() || coordinator_address_.empty())
    return inner_.on_down(peer, error);
  was_lost_ = true;
  spdlog::warn("lost the coordinator: {}; dialling {} for up to {:.0f} s", error.message,
               coordinator_address_, seconds(options_.reconnect));
  if (options_.on_coordinator_lost) options_.on_coordinator_lost();
  begin_dialling(options_.reconnect);
}

void ClusterMember::read_stores(std::string_view body) {
  wire::Stores stores;
  if (!stores.ParseFromArray(body.data(), static_cast<int>(body.size())))
    return spdlog::warn("malformed Stores of {} bytes", body.size());
  if (options_.role != Role::kWorker) return;
  std::map<int, std::string> addresses;
  std::set<int> ranks;
  for (const auto& store : stores.stores()) {
    addresses[store.world_rank()] = store.control_address();
    ranks.insert(store.world_rank());
  }
  if (options_.on_stores) options_.on_stores(ranks);
  set_stores(std::move(addresses));
}

void ClusterMember::dial_coordinator() {
  control_->connect(coordinator_address_,
                    Deadline::in(std::min<Duration>(kAttempt, give_up_.left() + kFirstPause)),
                    [this](Result<ConnectionPtr> result) {
                      if (!result.ok()) on_dialled(result.error());
                    });
}

void ClusterMember::on_dialled(const Error& error) {
  if (coordinator_) return;  // it has come by itself
  if (give_up_.passed() || error.code == Code::kUnauthenticated || error.code == Code::kInvalidArgument) {
    return options_.on_gave_up({Code::kUnavailable,
                                fmt::format("no coordinator at {}: {}", coordinator_address_, error.message),
                                {}});
  }
  coordinator_timer_.expires_after(pause_);
  pause_ = std::min<Duration>(pause_ * 2, kLongestPause);
  coordinator_timer_.async_wait([this](boost::system::error_code failure) {
    if (!failure && !coordinator_) dial_coordinator();
  });
}

void ClusterMember::dial_stores() {
  for (const auto& [rank, address] : stores_) {
    const auto refused = refused_.find(rank);
    if (refused != refused_.end() && refused->second == address) continue;
    if (connected_stores_.contains(rank) || !dialling_.insert(rank).second) continue;
    control_->connect(address, Deadline::in(kAttempt), [this, rank = rank](Result<ConnectionPtr> result) {
      dialling_.erase(rank);
      if (!result.ok()) dial_stores_later();
    });
  }
}

// As long as the coordinator names a store, it may only have been out of breath.
void ClusterMember::dial_stores_later() {
  if (stores_timer_armed_) return;
  stores_timer_armed_ = true;
  stores_timer_.expires_after(kStorePause);
  stores_timer_.async_wait([this](boost::system::error_code failure) {
    stores_timer_armed_ = false;
    if (!failure) dial_stores();
  });
}

}  // namespace lowkey::cli
