// One control connection over a link: handshake, then heartbeats, the bound of bytes in flight, one on_down.
// Heartbeats: each side sends one per interval and echoes the other's; an interval without any message from
// the peer is a miss, and anything that arrives sets the count to zero. With 1 s and 3 misses a stopped peer
// is noticed within 4 s. Own pauses do not count: a timer that fires late is one miss at most.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <memory>

#include "transport/control_plane.h"
#include "transport/core/handshake.h"
#include "transport/core/link.h"

namespace lowkey::transport {

struct SessionContext;

class Session final : public ControlConnection, public std::enable_shared_from_this<Session> {
 public:
  using Done = std::function<void(Result<ConnectionPtr>)>;

  // `done` may be empty (a server's session).
  Session(std::shared_ptr<SessionContext> context, uint64_t id, std::shared_ptr<Link> link,
          Handshake::Side side, Done done);
  void start(Deadline handshake_deadline);

  const PeerInfo& peer() const override { return handshake_.peer(); }
  uint64_t id() const override { return id_; }
  Status send(MessageType type, std::string body) override;
  void close(const std::string& reason) override;

  bool is_up() const { return state_ == State::kUp && !closing_; }
  bool is_handshaking() const { return state_ == State::kHandshaking; }
  const std::shared_ptr<Link>& link() const { return link_; }
  // Ends the connection at once; on_down or done follow before this returns. Nothing happens the second time.
  void down(const Error& cause, Duration linger);
  void abandon();  // the plane goes: down without a callback

 private:
  enum class State { kHandshaking, kUp, kDown };

  void on_message(MessageType type, std::string_view body);
  void on_handshake(const Handshake::Step& step);
  void on_heartbeat(std::string_view body);
  void up();
  void arm_heartbeat();
  void heartbeat_tick();
  void send_heartbeat(uint64_t sequence, bool reply);
  void transmit(MessageType type, std::string body);

  const std::shared_ptr<SessionContext> context_;
  const uint64_t id_;
  const std::shared_ptr<Link> link_;
  const bool inbound_;
  Handshake handshake_;
  Done done_;
  State state_ = State::kHandshaking;
  bool closing_ = false;
  boost::asio::steady_timer timer_;  // handshake deadline, then heartbeats
  uint64_t bytes_in_flight_ = 0;
  uint64_t heartbeat_sequence_ = 0;
  TimePoint heartbeat_sent_{};
  bool heard_ = false;  // anything since the last look
  int silent_looks_ = 0;
  uint64_t looks_ = 0;
};

}  // namespace lowkey::transport
