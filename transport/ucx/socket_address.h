// Addresses as text and as the kernel wants them.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "base/result.h"

namespace lowkey::transport {

// "host:port" or "[v6]:port"; names are resolved (which may block: start-up only, or literal addresses).
Result<sockaddr_storage> parse_address(const std::string& text);
Result<sockaddr_storage> resolve(const std::string& host, uint16_t port);
std::string format_address(const sockaddr_storage& address);
socklen_t length_of(const sockaddr_storage& address);
uint16_t port_of(const sockaddr_storage& address);
bool is_wildcard(const sockaddr_storage& address);

// The interface that has this address, or empty.
std::string device_of(const sockaddr_storage& address);
// An address by which other hosts reach this one, with port 0: the first of an interface that is up and no
// loopback, else 127.0.0.1.
sockaddr_storage reachable_address();

}  // namespace lowkey::transport
