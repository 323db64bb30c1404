// The handshake of one connection as a state machine without I/O (messages: wire/lowkey.proto).
//
//   client                                  server
//   Hello{version, nonce, self}        ->   version equal?
//   proof right?                       <-   HelloReply{version, nonce, self, proof}
//   HelloProof{proof}                  ->   proof right? fingerprints equal where both sides have one?
//   done                               <-   Welcome
//
// A proof is an HMAC-SHA256 under the cluster secret over both nonces and both descriptions, with the
// prover's side as label, so neither replay, reflection nor a changed description passes. Either side answers
// a mismatch with Goodbye{reason, code}; fingerprints are compared, and told, only after the peer has proven
// the secret.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "transport/control_plane.h"
#include "transport/peer.h"

namespace lowkey::transport {

inline constexpr uint32_t kProtocolVersion = 1;
inline constexpr size_t kMinSecretBytes = 16;
// Handshake messages are some 200 bytes; nothing longer is accepted from a peer that has not proven the
// secret.
inline constexpr size_t kMaxHandshakeBytes = 4096;

class Handshake {
 public:
  enum class Side { kClient, kServer };

  struct Message {
    MessageType type;
    std::string body;
  };
  // What to do next: send `reply` if there is one; then the peer is accepted, refused, or more is expected.
  struct Step {
    std::optional<Message> reply;
    bool accepted = false;
    std::optional<Error> refused;  // with a reply if the peer is to be told
  };

  Handshake(Side side, const PeerInfo& self, const std::string& secret, uint32_t version = kProtocolVersion);

  Step begin();  // the client's Hello; nothing for a server
  Step receive(MessageType type, std::string_view body);
  const PeerInfo& peer() const { return peer_; }  // proven once accepted
  // The peer has proven the secret; a client is not accepted yet then, but the server may have accepted it.
  bool is_peer_proven() const { return proven_; }

  // The message that tells a peer why the connection ends, and its reading.
  static std::string goodbye(const Error& error);
  static Error read_goodbye(std::string_view body);

 private:
  Step on_hello(std::string_view body);
  Step on_hello_reply(std::string_view body);
  Step on_hello_proof(std::string_view body);
  Step refuse(Code code, std::string reason) const;
  std::string proof(std::string_view label) const;

  const Side side_;
  const PeerInfo self_;
  const std::string secret_;
  const uint32_t version_;
  MessageType expected_;  // the only message that may come next, Goodbye aside
  std::string nonce_;     // ours
  std::string client_nonce_, server_nonce_;
  std::string hello_, unproven_reply_;  // serialized; parts of both proofs
  PeerInfo peer_;
  bool proven_ = false;
};

}  // namespace lowkey::transport
