// What fuzz targets of wire messages share: a peer that is the fuzzer, and its messages out of one input.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "transport/control_plane.h"

namespace lowkey::fuzz {

// The other side of the wire is the fuzzer.
class Peer final : public transport::ControlConnection {
 public:
  explicit Peer(transport::PeerInfo peer, uint64_t id = 1) : peer_(std::move(peer)), id_(id) {}
  explicit Peer(transport::Role role) : Peer(transport::PeerInfo{.role = role}) {}

  const transport::PeerInfo& peer() const override { return peer_; }
  uint64_t id() const override { return id_; }
  Status send(transport::MessageType, std::string) override {
    if (closed_) return Error{Code::kUnavailable, "closed", {}};
    return {};
  }
  void close(const std::string& reason) override {
    LOWKEY_CHECK(!reason.empty());
    closed_ = true;
  }
  bool closed() const { return closed_; }

 private:
  const transport::PeerInfo peer_;
  const uint64_t id_;
  bool closed_ = false;
};

// An input is a list of (head, 16-bit length, body); a last body that is cut short ends where the input does.
template <class F>
void for_each_message(const uint8_t* data, size_t size, F f) {
  while (size >= 3) {
    const size_t length = std::min<size_t>(data[1] | data[2] << 8, size - 3);
    f(data[0], std::string_view(reinterpret_cast<const char*>(data) + 3, length));
    data += 3 + length;
    size -= 3 + length;
  }
}

}  // namespace lowkey::fuzz
