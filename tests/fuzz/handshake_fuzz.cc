// A handshake with the fuzzer between the two sides: it passes on what they say, changes it, or says
// something else. Nobody is accepted who did not say what the other side believes.
//
// The input is a list of (how, 16-bit length, bytes): bit 0 of `how` is the side that hears, the next two
// what: the other side's message, that message with the bytes laid over it, or the bytes as a message whose
// type is the rest of `how`.
#include <cstdint>
#include <optional>

#include "tests/fuzz/messages.h"
#include "transport/core/handshake.h"

namespace lowkey::transport {
namespace {

const std::string kSecret = "0123456789abcdef0123456789abcdef";

class Party {
 public:
  Party(Handshake::Side side, Role role, int rank)
      : self_{.role = role, .world_rank = rank, .host = "host"}, handshake_(side, self_, kSecret) {
    take(handshake_.begin());
  }

  bool over() const { return accepted_ || refused_; }
  const std::optional<Handshake::Message>& said() const { return said_; }

  void hear(MessageType type, std::string_view body) {
    if (!over()) take(handshake_.receive(type, body));
  }

  void check(const Party& other) const {
    if (!accepted_) return;
    const PeerInfo& peer = handshake_.peer();
    LOWKEY_CHECK(peer.role == other.self_.role && peer.world_rank == other.self_.world_rank &&
                     peer.replica == other.self_.replica && peer.host == other.self_.host,
                 "rank {} was believed", peer.world_rank);
  }

 private:
  void take(Handshake::Step step) {
    if (step.reply) said_ = std::move(step.reply);
    accepted_ = step.accepted;
    refused_ = step.refused.has_value();
    LOWKEY_CHECK(!(accepted_ && refused_) && (!refused_ || !step.refused->message.empty()));
  }

  const PeerInfo self_;
  Handshake handshake_;
  std::optional<Handshake::Message> said_;  // last
  bool accepted_ = false, refused_ = false;
};

}  // namespace
}  // namespace lowkey::transport

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowkey::transport;
  Party client(Handshake::Side::kClient, Role::kWorker, 3), server(Handshake::Side::kServer, Role::kStore, 7);
  lowkey::fuzz::for_each_message(data, size, [&](uint8_t how, std::string_view bytes) {
    Party& hearer = how & 1 ? server : client;
    const auto& said = (how & 1 ? client : server).said();
    const int what = how >> 1 & 3;
    if (what == 3 || !said) return hearer.hear(static_cast<MessageType>(how >> 3), bytes);
    std::string body = said->body;
    for (size_t i = 0; what == 2 && i < bytes.size() && i < body.size(); ++i) body[i] ^= bytes[i];
    hearer.hear(said->type, body);
  });
  client.check(server);
  server.check(client);
  return 0;
}
