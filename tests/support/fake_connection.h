// A control connection to nobody: says who is on the other side, and counts what it was told to send.
#pragma once

#include <map>

#include "transport/control_plane.h"

namespace lowkey::test {

class FakeConnection final : public transport::ControlConnection {
 public:
  FakeConnection(transport::Role role, int world_rank, int replica = 0, int replica_rank = 0) {
    info_.role = role;
    info_.world_rank = world_rank;
    info_.replica = replica;
    info_.replica_rank = replica_rank;
  }
  const transport::PeerInfo& peer() const override { return info_; }
  uint64_t id() const override { return static_cast<uint64_t>(info_.world_rank); }
  Status send(transport::MessageType type, std::string) override {
    ++sent[type];
    return outcome;
  }
  void close(const std::string&) override {}

  std::map<transport::MessageType, int> sent;
  Status outcome;  // of what is sent

 private:
  transport::PeerInfo info_;
};

}  // namespace lowkey::test
