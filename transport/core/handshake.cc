#include "transport/core/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cstring>

#include "transport/wire/lowkey.pb.h"

namespace lowkey::transport {
namespace {

constexpr size_t kNonceBytes = 32;
// Of ranks and replicas: sums of a few stay far from what an int holds.
constexpr int32_t kMaxNumber = 1 << 24;

std::string fresh_nonce() {
  std::string nonce(kNonceBytes, '\0');
  LOWKEY_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()), kNonceBytes) == 1, "no randomness");
  return nonce;
}

std::string to_bytes(const Hash128& hash) {
  if (hash.is_zero()) return {};
  std::string bytes(16, '\0');
  std::memcpy(bytes.data(), &hash.hi, 8);
  std::memcpy(bytes.data() + 8, &hash.lo, 8);
  return bytes;
}

Hash128 to_hash(const std::string& bytes) {
  Hash128 hash;
  if (bytes.size() != 16) return hash;
  std::memcpy(&hash.hi, bytes.data(), 8);
  std::memcpy(&hash.lo, bytes.data() + 8, 8);
  return hash;
}

void describe(const PeerInfo& peer, wire::PeerDescription* out) {
  out->set_role(static_cast<uint32_t>(peer.role));
  out->set_world_rank(peer.world_rank);
  out->set_replica(peer.replica);
  out->set_replica_rank(peer.replica_rank);
  out->set_replica_size(peer.replica_size);
  out->set_host(peer.host);
  out->set_rdma(peer.rdma);
  out->set_model_fingerprint(to_bytes(peer.model_fingerprint));
  out->set_layout_fingerprint(to_bytes(peer.layout_fingerprint));
}

std::optional<PeerInfo> read_description(const wire::PeerDescription& in) {
  const auto is_number = [](int32_t id) { return id >= -1 && id <= kMaxNumber; };  // -1: has none yet
  if (in.role() > static_cast<uint32_t>(Role::kStore)) return std::nullopt;
  if (!is_number(in.world_rank()) || !is_number(in.replica()) || !is_number(in.replica_size()))
    return std::nullopt;
  if (in.replica_rank() < 0 || in.replica_rank() >= in.replica_size()) return std::nullopt;
  PeerInfo peer;
  peer.role = static_cast<Role>(in.role());
  peer.world_rank = in.world_rank();
  peer.replica = in.replica();
  peer.replica_rank = in.replica_rank();
  peer.replica_size = in.replica_size();
  peer.host = in.host();
  peer.rdma = in.rdma();
  peer.model_fingerprint = to_hash(in.model_fingerprint());
  peer.layout_fingerprint = to_hash(in.layout_fingerprint());
  return peer;
}

bool equal_in_constant_time(const std::string& a, const std::string& b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

// Empty when they agree or one side is not bound.
std::string fingerprint_mismatch(const char* what, const Hash128& ours, const Hash128& theirs) {
  if (ours.is_zero() || theirs.is_zero() || ours == theirs) return {};
  return fmt::format("{} fingerprint {}, expected {}", what, theirs.hex(), ours.hex());
}

template <class Wire>
bool parse(Wire& message, std::string_view body) {
  return message.ParseFromArray(body.data(), static_cast<int>(body.size()));
}

}  // namespace

Handshake::Handshake(Side side, const PeerInfo& self, const std::string& secret, uint32_t version)
    : side_(side),
      self_(self),
      secret_(secret),
      version_(version),
      expected_(side == Side::kClient ? MessageType::kHelloReply : MessageType::kHello),
      nonce_(fresh_nonce()) {}

Handshake::Step Handshake::begin() {
  if (side_ == Side::kServer) return {};
  wire::Hello hello;
  hello.set_protocol_version(version_);
  hello.set_nonce(nonce_);
  describe(self_, hello.mutable_self());
  client_nonce_ = nonce_;
  hello_ = hello.SerializeAsString();
  return {.reply = Message{MessageType::kHello, hello_}};
}

Handshake::Step Handshake::receive(MessageType type, std::string_view body) {
  if (type == MessageType::kGoodbye) {
    Error error = read_goodbye(body);
    error.message = "refused by the peer: " + error.message;
    return {.refused = std::move(error)};
  }
  if (body.size() > kMaxHandshakeBytes) return refuse(Code::kTooLarge, "handshake message too long");
  if (type != expected_) {
    return refuse(Code::kUnauthenticated,
                  fmt::format("message type {} before the handshake was through, expected {}",
                              static_cast<int>(type), static_cast<int>(expected_)));
  }
  switch (type) {
    case MessageType::kHello:
      return on_hello(body);
    case MessageType::kHelloReply:
      return on_hello_reply(body);
    case MessageType::kHelloProof:
      return on_hello_proof(body);
    default:
      return {.accepted = true};  // kWelcome, the only other type ever expected
  }
}

Handshake::Step Handshake::on_hello(std::string_view body) {
  wire::Hello hello;
  if (!parse(hello, body)) return refuse(Code::kInvalidArgument, "Hello is malformed");
  if (hello.protocol_version() != version_) {
    return refuse(Code::kInvalidArgument,
                  fmt::format("protocol version {}, expected {}", hello.protocol_version(), version_));
  }
  auto peer = read_description(hello.self());
  if (!peer || hello.nonce().size() != kNonceBytes)
    return refuse(Code::kInvalidArgument, "Hello has bad values");
  peer_ = std::move(*peer);
  hello_ = std::string(body);
  client_nonce_ = hello.nonce();
  server_nonce_ = nonce_;

  wire::HelloReply reply;
  reply.set_protocol_version(version_);
  reply.set_nonce(nonce_);
  describe(self_, reply.mutable_self());
  unproven_reply_ = reply.SerializeAsString();
  reply.set_proof(proof("server"));
  expected_ = MessageType::kHelloProof;
  return {.reply = Message{MessageType::kHelloReply, reply.SerializeAsString()}};
}

Handshake::Step Handshake::on_hello_reply(std::string_view body) {
  wire::HelloReply reply;
  if (!parse(reply, body)) return refuse(Code::kInvalidArgument, "HelloReply is malformed");
  if (reply.protocol_version() != version_) {
    return refuse(Code::kInvalidArgument,
                  fmt::format("protocol version {}, expected {}", reply.protocol_version(), version_));
  }
  auto peer = read_description(reply.self());
  if (!peer || reply.nonce().size() != kNonceBytes)
    return refuse(Code::kInvalidArgument, "HelloReply has bad values");
  peer_ = std::move(*peer);
  server_nonce_ = reply.nonce();
  const std::string theirs = reply.proof();
  reply.clear_proof();
  unproven_reply_ = reply.SerializeAsString();
  if (!equal_in_constant_time(theirs, proof("server"))) {
    return refuse(Code::kUnauthenticated, "wrong cluster secret");
  }
  proven_ = true;
  wire::HelloProof answer;
  answer.set_proof(proof("client"));
  expected_ = MessageType::kWelcome;
  return {.reply = Message{MessageType::kHelloProof, answer.SerializeAsString()}};
}

Handshake::Step Handshake::on_hello_proof(std::string_view body) {
  wire::HelloProof answer;
  if (!parse(answer, body) || !equal_in_constant_time(answer.proof(), proof("client"))) {
    return refuse(Code::kUnauthenticated, "wrong cluster secret");
  }
  proven_ = true;
  std::string mismatch = fingerprint_mismatch("model", self_.model_fingerprint, peer_.model_fingerprint);
  if (mismatch.empty()) {
    mismatch = fingerprint_mismatch("layout", self_.layout_fingerprint, peer_.layout_fingerprint);
  }
  if (!mismatch.empty()) return refuse(Code::kInvalidArgument, mismatch);
  return {.reply = Message{MessageType::kWelcome, wire::Welcome().SerializeAsString()}, .accepted = true};
}

Handshake::Step Handshake::refuse(Code code, std::string reason) const {
  Error error{code, std::move(reason)};
  return {.reply = Message{MessageType::kGoodbye, goodbye(error)}, .refused = error};
}

// HMAC-SHA256(secret, label || client nonce || server nonce || size of Hello || Hello || HelloReply without
// proof)
std::string Handshake::proof(std::string_view label) const {
  std::string input(label);
  input += client_nonce_;
  input += server_nonce_;
  const auto hello_bytes = static_cast<uint32_t>(hello_.size());
  input.append(reinterpret_cast<const char*>(&hello_bytes), sizeof hello_bytes);
  input += hello_;
  input += unproven_reply_;
  std::string digest(32, '\0');
  unsigned int length = 0;
  HMAC(EVP_sha256(), secret_.data(), static_cast<int>(secret_.size()),
       reinterpret_cast<const unsigned char*>(input.data()), input.size(),
       reinterpret_cast<unsigned char*>(digest.data()), &length);
  LOWKEY_CHECK(length == digest.size(), "HMAC of {} bytes", length);
  return digest;
}

std::string Handshake::goodbye(const Error& error) {
  wire::Goodbye message;
  message.set_reason(error.message);
  message.set_code(static_cast<uint32_t>(error.code));
  return message.SerializeAsString();
}

Error Handshake::read_goodbye(std::string_view body) {
  wire::Goodbye message;
  Error error{Code::kUnavailable, "no readable reason"};
  // The sender may be anybody: nothing but printable characters reaches our log, and not many of them.
  if (body.size() > kMaxHandshakeBytes || !parse(message, body)) return error;
  error.message = message.reason().substr(0, 256);
  std::replace_if(
      error.message.begin(), error.message.end(), [](char c) { return c < 32 || c > 126; }, '?');
  if (message.code() <= static_cast<uint32_t>(Code::kInternal))
    error.code = static_cast<Code>(message.code());
  return error;
}

}  // namespace lowkey::transport
