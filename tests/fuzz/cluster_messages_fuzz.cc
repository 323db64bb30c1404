// What processes of a cluster tell its coordinator: they come, go, ask for places, report, announce pages and
// metrics. It keeps its bounds, and can choose a replica for a prompt at any time. A message of type 0 brings
// its sender's connection up, one of type 1 takes it down.
#include <array>
#include <boost/asio/io_context.hpp>

#include "base/serve_config.h"
#include "cli/cluster_roster.h"
#include "coordinator/membership/membership.h"
#include "coordinator/routing/router.h"
#include "monitoring/metrics.h"
#include "tests/fuzz/messages.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::coordinator {
namespace {

using fuzz::Peer;
using transport::ConnectionPtr;
using transport::MessageType;
using transport::Role;

monitoring::Metrics& metrics() {
  static monitoring::Metrics all({{"role", "coordinator"}, {"rank", "0"}});
  return all;
}

// Of one family behind the head that every snapshot of this catalog has, or of anything.
void check_metrics(const std::string& families) {
  static const std::string head = metrics().serialize().substr(0, 4 + sizeof(uint64_t));
  for (const std::string& snapshot : {families, head + families}) {
    const auto page = monitoring::render_page(std::array{snapshot});
    LOWKEY_CHECK(page.ok() || !page.error().message.empty());
  }
}

class Front {
 public:
  Front()
      : membership_(metrics()),
        router_(config_, membership_, metrics()),
        roster_(io_, membership_, {.job_ranks = 4, .job_replicas = 1, .open = true}),
        handlers_(roster_.wrap(
            {.on_up = [this](const ConnectionPtr& peer) { up(peer); },
             .on_message = [this](const ConnectionPtr& peer, MessageType type,
                                  std::string_view body) { message(peer, type, body); },
             .on_down = [this](const ConnectionPtr& peer, const Error& error) { down(peer, error); }})) {
    add({.role = Role::kWorker, .world_rank = 1, .replica_size = 2});
    add({.role = Role::kWorker, .world_rank = 2, .replica_rank = 1, .replica_size = 2});
    add({.role = Role::kWorker, .world_rank = 3, .replica = 1});
    add({.role = Role::kStore, .world_rank = 4});
    add({.role = Role::kWorker, .world_rank = -1, .replica = -1});
    add({.role = Role::kStore, .world_rank = -1, .replica = -1});
  }

  // `head`: the sender in its upper three bits, the type among kTypes.
  void take(uint8_t head, std::string_view body) {
    static constexpr std::array kTypes = {0, 1, 24, 26, 28, 33, 34, 35, 32};
    auto& [info, peer] = peers_[(head >> 5) % peers_.size()];
    const int type = kTypes[(head & 31) % kTypes.size()];
    if (peer && peer->closed()) lose(peer, {Code::kCancelled, "closed", {}});
    if (type == 0 && !peer) {
      peer = std::make_shared<Peer>(info, ++ids_);
      handlers_.on_up(peer);
    } else if (type == 1 && peer) {
      lose(peer, {Code::kUnavailable, "killed", {}});
    } else if (type > 1 && peer) {
      handlers_.on_message(peer, static_cast<MessageType>(type), body);
    }
    io_.poll();
    io_.restart();
    choose();
  }

 private:
  struct Sender {
    transport::PeerInfo info;
    std::shared_ptr<Peer> peer;  // null: not connected
  };

  void add(transport::PeerInfo info) {
    peers_.push_back({info, std::make_shared<Peer>(info, ++ids_)});
    handlers_.on_up(peers_.back().peer);
  }
  void lose(std::shared_ptr<Peer>& peer, const Error& error) {
    const auto gone = std::exchange(peer, nullptr);
    handlers_.on_down(gone, error);
  }
  void up(const ConnectionPtr& peer) {
    if (membership_.on_up(peer)) router_.on_up(peer);
  }
  void down(const ConnectionPtr& peer, const Error& error) {
    if (membership_.is_member(peer)) router_.on_down(peer);
    (void)membership_.on_down(peer, error);
  }
  void message(const ConnectionPtr& peer, MessageType type, std::string_view body) {
    const auto parse = [&](auto& into) {
      return into.ParseFromArray(body.data(), static_cast<int>(body.size()));
    };
    wire::ReplicaState state;
    wire::PrefixEvents events;
    wire::MetricsReply reply;
    if (type == MessageType::kReplicaState && parse(state)) membership_.on_state(peer, state);
    if (type == MessageType::kPrefixEvents && parse(events)) router_.on_prefix_events(peer, events);
    if (type == MessageType::kMetricsReply && parse(reply)) check_metrics(reply.families());
  }
  void choose() const {
    static const std::vector<int32_t> tokens(70, 7);
    const RoutingDecision decision = router_.choose({.tokens = tokens, .total_tokens = 80, .min_levels = 1});
    if (decision.replica < 0) return;
    const Replica* replica = membership_.find(decision.replica);
    LOWKEY_CHECK(replica != nullptr && replica->can_serve() && replica->leader, "replica {}",
                 decision.replica);
    LOWKEY_CHECK(decision.chosen()->first_token() >= 0, "{} s", decision.chosen()->first_token());
  }

  boost::asio::io_context io_;
  const ServeConfig config_;
  Membership membership_;
  Router router_;
  cli::ClusterRoster roster_;
  transport::ControlHandlers handlers_;
  std::vector<Sender> peers_;
  uint64_t ids_ = 0;
};

}  // namespace
}  // namespace lowkey::coordinator

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lowkey::coordinator::Front front;
  lowkey::fuzz::for_each_message(data, size,
                                 [&](uint8_t head, std::string_view body) { front.take(head, body); });
  return 0;
}
