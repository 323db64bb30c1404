#include "transport/core/handshake.h"

#include <gtest/gtest.h>

#include "transport/wire/lowkey.pb.h"

namespace lowkey::transport {
namespace {

const std::string kSecret = "0123456789abcdef";

Handshake client(const std::string& secret = kSecret) {
  return {Handshake::Side::kClient, {}, secret};
}
Handshake server(const std::string& secret = kSecret) {
  PeerInfo self;
  self.role = Role::kStore;
  return {Handshake::Side::kServer, self, secret};
}

TEST(Handshake, AcceptsBothSides) {
  auto c = client();
  auto s = server();
  auto hello = c.begin();
  auto reply = s.receive(hello.reply->type, hello.reply->body);
  auto proof = c.receive(reply.reply->type, reply.reply->body);
  auto welcome = s.receive(proof.reply->type, proof.reply->body);
  EXPECT_TRUE(welcome.accepted);
  EXPECT_TRUE(c.receive(welcome.reply->type, welcome.reply->body).accepted);
  EXPECT_EQ(c.peer().role, Role::kStore);
}

TEST(Handshake, AChangedDescriptionFailsTheProof) {
  auto c = client();
  auto s = server();
  wire::Hello hello;
  hello.ParseFromString(c.begin().reply->body);
  hello.mutable_self()->set_world_rank(7);
  auto reply = s.receive(MessageType::kHello, hello.SerializeAsString());
  EXPECT_TRUE(c.receive(MessageType::kHelloReply, reply.reply->body).refused);

  auto c2 = client();
  auto s2 = server();
  auto reply2 = s2.receive(MessageType::kHello, c2.begin().reply->body);
  wire::HelloReply changed;
  changed.ParseFromString(reply2.reply->body);
  changed.mutable_self()->set_host("elsewhere");
  EXPECT_TRUE(c2.receive(MessageType::kHelloReply, changed.SerializeAsString()).refused);
}

TEST(Handshake, AServersProofCannotBeSentBack) {
  auto c = client();
  auto s = server();
  auto reply = s.receive(MessageType::kHello, c.begin().reply->body);
  wire::HelloReply message;
  message.ParseFromString(reply.reply->body);
  wire::HelloProof reflected;
  reflected.set_proof(message.proof());
  auto step = s.receive(MessageType::kHelloProof, reflected.SerializeAsString());
  ASSERT_TRUE(step.refused);
  EXPECT_EQ(step.refused->code, Code::kUnauthenticated);
}

TEST(Handshake, AnOldProofDoesNotFitANewNonce) {
  auto c = client();
  auto s = server();
  const auto hello = c.begin();
  auto proof =
      c.receive(MessageType::kHelloReply, s.receive(MessageType::kHello, hello.reply->body).reply->body);
  auto later = server();
  (void)later.receive(MessageType::kHello, hello.reply->body);
  EXPECT_TRUE(later.receive(MessageType::kHelloProof, proof.reply->body).refused);
}

TEST(Handshake, RefusesNumbersThatNoClusterHas) {
  const auto answer = [](auto change) {
    wire::Hello hello;
    hello.ParseFromString(client().begin().reply->body);
    change(*hello.mutable_self());
    return server().receive(MessageType::kHello, hello.SerializeAsString());
  };
  EXPECT_FALSE(answer([](auto& self) { self.set_world_rank(-1); }).refused);
  EXPECT_TRUE(answer([](auto& self) { self.set_world_rank(-2); }).refused);
  EXPECT_TRUE(answer([](auto& self) { self.set_world_rank(INT32_MAX); }).refused);
  EXPECT_TRUE(answer([](auto& self) { self.set_replica(INT32_MAX); }).refused);
  EXPECT_TRUE(answer([](auto& self) { self.set_replica_size(0); }).refused);
  EXPECT_TRUE(answer([](auto& self) { self.set_replica_size(INT32_MAX); }).refused);
  EXPECT_TRUE(answer([](auto& self) { self.set_replica_rank(1); }).refused);
}

TEST(Handshake, RefusesWhatIsOutOfTurnOrMalformed) {
  EXPECT_TRUE(server().receive(MessageType::kWelcome, "").refused);
  EXPECT_TRUE(client().receive(MessageType::kWelcome, "").refused);
  EXPECT_TRUE(server().receive(MessageType::kHello, "\xff\xff\xff").refused);
  EXPECT_TRUE(server().receive(MessageType::kHello, std::string(kMaxHandshakeBytes + 1, 'a')).refused);
  auto told =
      client().receive(MessageType::kGoodbye, Handshake::goodbye({Code::kUnauthenticated, "no\nway"}));
  ASSERT_TRUE(told.refused);
  EXPECT_FALSE(told.reply);
  EXPECT_EQ(told.refused->code, Code::kUnauthenticated);
  EXPECT_EQ(told.refused->message, "refused by the peer: no?way");
}

}  // namespace
}  // namespace lowkey::transport
