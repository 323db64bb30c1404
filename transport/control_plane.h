// Control connections: small messages (wire/lowkey.proto) between processes, with handshake, heartbeat and prompt
// notice of a peer's death. Implementations: ucx/ (real), loopback/ (one process, with fault injection).
//
// Handshake: protocol version, challenge-response on the cluster secret (HMAC-SHA256 both ways), fingerprints;
// a mismatch is refused with the reason on both sides. Heartbeats: every second, dead after 3 missed; answered on
// the I/O thread. A death is reported exactly once through on_down, after which send() fails.
//
// Thread rule: everything, callbacks included, runs on the io_context's single thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "kernels/ops/staged_memory.h"
#include "transport/peer.h"
#include "transport/stats.h"

namespace boost::asio {
class io_context;
}

namespace lowkey::transport {

// The message's type on the wire; the body is the Protobuf message of the same name. Values never change.
enum class MessageType : uint16_t {
  kHello = 1, kHelloReply = 2, kHelloProof = 3, kWelcome = 4, kHeartbeat = 5, kGoodbye = 6,
  // coordinator -> leader
  kSubmit = 16, kCancel = 17, kDrain = 18, kMetricsRequest = 19, kPrefixResync = 20,
  // membership: wire/lowkey.proto says who sends which
  kJoin = 24, kJoined = 25, kIntroduce = 26, kStores = 27, kLeave = 28,
  // leader -> coordinator
  kTokenEvents = 32, kMetricsReply = 33, kReplicaState = 34, kPrefixEvents = 35,
  // leader -> follower, follower -> leader
  kStepPlan = 48, kRestoreCommand = 49, kRestoreResult = 50,
  // worker -> store and back
  kReserveRequest = 64, kReserveReply = 65, kCommitRequest = 66, kLookupRequest = 67, kLookupReply = 68,
  kRelease = 69, kAbort = 70, kCommitReply = 71, kPoolInfo = 72,
};

// Bodies are plans, tables and metric pages, never cache content; the receiver buffers one whole message.
inline constexpr size_t kMaxMessageBytes = 16u << 20;

class ControlConnection {
 public:
  virtual ~ControlConnection() = default;
  virtual const PeerInfo& peer() const = 0;
  virtual uint64_t id() const = 0;  // unique within this process
  // Queues the message; kTooLarge above kMaxMessageBytes, kResourceExhausted when more than the bound of bytes is
  // in flight, kUnavailable when down.
  virtual Status send(MessageType type, std::string body) = 0;
  // Orderly: sends Goodbye with the reason; on_down follows with kCancelled on both sides.
  virtual void close(const std::string& reason = "closed") = 0;
};
using ConnectionPtr = std::shared_ptr<ControlConnection>;  // all of them go before the io_context

struct ControlHandlers {
  std::function<void(const ConnectionPtr&)> on_up;
  std::function<void(const ConnectionPtr&, MessageType, std::string_view body)> on_message;
  std::function<void(const ConnectionPtr&, const Error&)> on_down;
  // Once per connection with one-sided transfers, some 100 ms after its first DataPlane::open().
  std::function<void(const ConnectionPtr&, const Attestation&)> on_attested = {};
};

struct ControlOptions {
  PeerInfo self;
  bool on_gpu = false;  // this process's pages lie in a GPU's memory
  // Some of that memory, to measure paths from there; null: they are not. Used on the I/O thread alone.
  std::shared_ptr<kernels::StagedMemory> staged = nullptr;
  std::string cluster_secret;               // >= 16 bytes
  std::string listen_host = "127.0.0.1";    // address the control port is bound to
  uint16_t listen_port = 0;                 // 0: any free one
  Duration heartbeat_interval = std::chrono::seconds(1);
  int missed_heartbeats = 3;
  Duration handshake_deadline = std::chrono::seconds(5);
  uint64_t max_bytes_in_flight = 64ull << 20;  // per connection
};

class ControlPlane {
 public:
  virtual ~ControlPlane() = default;
  // Others connect here: "host:port".
  virtual std::string address() const = 0;
  // Result arrives by `done` on the I/O thread once the handshake is through (on_up is called first), or with the
  // reason it was refused.
  virtual void connect(const std::string& address, Deadline deadline,
                       std::function<void(Result<ConnectionPtr>)> done) = 0;
  virtual void shutdown() = 0;  // closes every connection
  virtual TransportStats stats() const = 0;  // of this plane and of the data plane made with it
};

}  // namespace lowkey::transport
