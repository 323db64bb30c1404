#include "transport/core/session.h"

#include <boost/asio/post.hpp>

#include "base/log.h"
#include "transport/core/session_context.h"
#include "transport/wire/lowkey.pb.h"

namespace lowkey::transport {
namespace {

// How long a link may take to get a Goodbye out before it is dropped: as long as a peer may be busy before it
// counts as dead. One that reads it later sees a loss instead of an orderly end.
constexpr Duration kGoodbyeLinger = std::chrono::seconds(3);

// Looks of a heartbeat interval at whether anything was heard. Silence counts from the last message on, not
// from the next beat: that would be up to an interval more. Looks are counted, not seconds: a process that
// was stopped itself reads what has arrived meanwhile before it takes anybody for dead.
constexpr int kLooks = 4;

}  // namespace

Session::Session(std::shared_ptr<SessionContext> context, uint64_t id, std::shared_ptr<Link> link,
                 Handshake::Side side, Done done)
    : context_(std::move(context)),
      id_(id),
      link_(std::move(link)),
      inbound_(side == Handshake::Side::kServer),
      handshake_(side, context_->options.self, context_->options.cluster_secret),
      done_(std::move(done)),
      timer_(context_->io) {}

void Session::start(Deadline handshake_deadline) {
  ++context_->stats.handshakes_now;
  link_->set_receive_limit(kMaxHandshakeBytes);
  link_->start({.on_message =
                    [weak = weak_from_this()](MessageType type, std::string_view body) {
                      if (auto self = weak.lock()) self->on_message(type, body);
                    },
                .on_broken =
                    [weak = weak_from_this()](const Error& error) {
                      if (auto self = weak.lock()) self->down(error, Duration::zero());
                    }});
  timer_.expires_at(handshake_deadline.at());
  timer_.async_wait([weak = weak_from_this()](boost::system::error_code ec) {
    auto self = weak.lock();
    if (ec || !self || !self->is_handshaking()) return;
    self->down({Code::kDeadlineExceeded, "no handshake before the deadline"}, Duration::zero());
  });
  on_handshake(handshake_.begin());
}

void Session::on_message(MessageType type, std::string_view body) {
  if (state_ == State::kHandshaking) return on_handshake(handshake_.receive(type, body));
  if (state_ == State::kDown || closing_) return;
  heard_ = true;
  if (type == MessageType::kHeartbeat) return on_heartbeat(body);
  if (type == MessageType::kGoodbye) {
    return down({Code::kCancelled, "closed by the peer: " + Handshake::read_goodbye(body).message},
                Duration::zero());
  }
  if (type <= MessageType::kWelcome) {
    return down({Code::kInvalidArgument, "handshake message on a connection that is up"}, Duration::zero());
  }
  ++context_->stats.messages_received;
  context_->stats.message_bytes_received += body.size();
  if (context_->handlers.on_message) context_->handlers.on_message(shared_from_this(), type, body);
}

void Session::on_handshake(const Handshake::Step& step) {
  // Before the answer that lets the server go on: its first messages may arrive in one go with its Welcome,
  // and links look at a message's size as it arrives.
  if (handshake_.is_peer_proven()) link_->set_receive_limit(kMaxMessageBytes);
  if (step.reply) transmit(step.reply->type, step.reply->body);
  if (step.accepted) return up();
  if (!step.refused) return;
  ++context_->stats.handshakes_refused;
  down(*step.refused, step.reply ? kGoodbyeLinger : Duration::zero());
}

void Session::up() {
  state_ = State::kUp;
  --context_->stats.handshakes_now;
  ++context_->stats.peers_up_now;
  heard_ = true;
  spdlog::debug("{} {} is up at {}", to_string(peer().role), peer().world_rank, link_->remote());
  arm_heartbeat();
  auto self = shared_from_this();
  if (context_->handlers.on_up) context_->handlers.on_up(self);
  if (auto done = std::exchange(done_, nullptr)) done(ConnectionPtr(self));
}

void Session::down(const Error& cause, Duration linger) {
  if (state_ == State::kDown) return;
  // The peer hangs up on our Goodbye, possibly before we do: that is no loss.
  const Error error = closing_ ? Error{Code::kCancelled, "closed"} : cause;
  auto self = shared_from_this();  // the context may hold the last reference
  const bool was_up = state_ == State::kUp;
  state_ = State::kDown;
  timer_.cancel();
  link_->close(linger);
  context_->sessions.erase(id_);
  auto& stats = context_->stats;
  --(was_up ? stats.peers_up_now : stats.handshakes_now);
  if (was_up) {
    if (error.code != Code::kCancelled) {
      ++stats.connections_lost;
      spdlog::warn("lost {} {} at {}: {}", to_string(peer().role), peer().world_rank, link_->remote(),
                   error.message);
    }
    if (context_->down_observer) context_->down_observer(id_, error);
    if (context_->handlers.on_down) context_->handlers.on_down(self, error);
    return;
  }
  if (error.code != Code::kCancelled) {
    spdlog::warn("connection {} {} refused: {}", inbound_ ? "from" : "to", link_->remote(), error.message);
  }
  if (auto done = std::exchange(done_, nullptr)) done(error);
}

void Session::abandon() {
  done_ = nullptr;
  down({Code::kCancelled, "shut down"}, Duration::zero());
}

Status Session::send(MessageType type, std::string body) {
  auto refuse = [&](Code code, std::string message) {
    ++context_->stats.sends_refused;
    return Error{code, std::move(message)};
  };
  if (!is_up()) return refuse(Code::kUnavailable, "connection is down");
  if (body.size() > kMaxMessageBytes) {
    return refuse(Code::kTooLarge,
                  fmt::format("message of {} bytes, at most {}", body.size(), kMaxMessageBytes));
  }
  if (bytes_in_flight_ + body.size() > context_->options.max_bytes_in_flight) {
    return refuse(
        Code::kResourceExhausted,
        fmt::format("{} bytes in flight to {} {}, at most {}", bytes_in_flight_, to_string(peer().role),
                    peer().world_rank, context_->options.max_bytes_in_flight));
  }
  ++context_->stats.messages_sent;
  context_->stats.message_bytes_sent += body.size();
  transmit(type, std::move(body));
  return {};
}

void Session::transmit(MessageType type, std::string body) {
  const size_t bytes = body.size();
  bytes_in_flight_ += bytes;
  context_->stats.message_bytes_in_flight_now += bytes;
  // Not the session itself: a loopback message may sit in another process's event loop when ours is gone.
  link_->send(type, std::move(body), [context = context_, weak = weak_from_this(), bytes] {
    context->stats.message_bytes_in_flight_now -= bytes;
    if (auto self = weak.lock()) self->bytes_in_flight_ -= bytes;
  });
}

void Session::close(const std::string& why) {
  if (state_ == State::kDown || closing_) return;
  closing_ = true;
  const Error reason{Code::kCancelled, why};
  transmit(MessageType::kGoodbye, Handshake::goodbye(reason));
  boost::asio::post(context_->io,
                    [self = shared_from_this(), reason] { self->down(reason, kGoodbyeLinger); });
}

void Session::arm_heartbeat() {
  timer_.expires_after(context_->options.heartbeat_interval / kLooks);
  timer_.async_wait([weak = weak_from_this()](boost::system::error_code ec) {
    auto self = weak.lock();
    if (!ec && self && self->state_ == State::kUp) self->heartbeat_tick();
  });
}

void Session::heartbeat_tick() {
  silent_looks_ = heard_ ? 0 : silent_looks_ + 1;
  heard_ = false;
  if (silent_looks_ > 0 && silent_looks_ % kLooks == 0) ++context_->stats.heartbeats_missed;
  if (silent_looks_ >= context_->options.missed_heartbeats * kLooks) {
    ++context_->stats.peers_silent;
    const double silent = silent_looks_ * seconds(context_->options.heartbeat_interval) / kLooks;
    return down({Code::kUnavailable, fmt::format("no sign of life for {:.1f} s", silent)}, Duration::zero());
  }
  if (++looks_ % kLooks == 0) {
    heartbeat_sent_ = Clock::now();
    send_heartbeat(++heartbeat_sequence_, false);
  }
  arm_heartbeat();
}

void Session::on_heartbeat(std::string_view body) {
  wire::Heartbeat beat;
  if (!beat.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return down({Code::kInvalidArgument, "Heartbeat is malformed"}, Duration::zero());
  }
  if (!beat.reply()) return send_heartbeat(beat.sequence(), true);
  if (beat.sequence() == heartbeat_sequence_) {
    context_->stats.heartbeat_round_trip_seconds = seconds(Clock::now() - heartbeat_sent_);
  }
}

void Session::send_heartbeat(uint64_t sequence, bool reply) {
  // Echoes wait behind a peer that does not read: they are not worth more than its bound.
  if (bytes_in_flight_ > context_->options.max_bytes_in_flight) return;
  wire::Heartbeat beat;
  beat.set_sequence(sequence);
  beat.set_reply(reply);
  transmit(MessageType::kHeartbeat, beat.SerializeAsString());
}

}  // namespace lowkey::transport
