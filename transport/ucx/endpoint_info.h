// What UCX says about an endpoint, read from the text of ucp_ep_print_info: 1.13 has no call that tells it
// (ucp_ep_query knows names and socket addresses only). The text is made for people, so whatever does not
// look as expected is passed over, and an empty answer means "cannot be told".
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "transport/attestation.h"

namespace lowkey::transport {

struct Lane {
  std::string transport;   // "sysv", "tcp", "rc_mlx5"
  std::string device;      // "memory", "eth0", "mlx5_0:1"
  bool one_sided = false;  // puts and gets without the peer's CPU
  bool messages = false;   // carries active messages; one-sided transfers too where no lane is one_sided
};

std::vector<Lane> parse_endpoint_info(std::string_view text);
// The lanes that puts and gets go over: the one-sided ones, else that of the messages, which emulates them.
std::vector<Lane> transfer_lanes(const std::vector<Lane>& lanes);
// Shared memory or RDMA only when all of the lanes are; REQUIRES: not empty.
Path path_of(const std::vector<Lane>& lanes);
std::string device_names(const std::vector<Lane>& lanes);  // "sysv/memory,posix/memory"; "unknown" for none

}  // namespace lowkey::transport
