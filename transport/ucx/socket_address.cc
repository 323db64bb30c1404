#include "transport/ucx/socket_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>

#include <charconv>
#include <cstring>
#include <functional>
#include <memory>

namespace lowkey::transport {
namespace {

const sockaddr_in& v4(const sockaddr_storage& address) {
  return reinterpret_cast<const sockaddr_in&>(address);
}
const sockaddr_in6& v6(const sockaddr_storage& address) {
  return reinterpret_cast<const sockaddr_in6&>(address);
}

bool same_host(const sockaddr_storage& a, const sockaddr& b) {
  if (a.ss_family != b.sa_family) return false;
  if (a.ss_family == AF_INET) {
    return v4(a).sin_addr.s_addr == reinterpret_cast<const sockaddr_in&>(b).sin_addr.s_addr;
  }
  return std::memcmp(&v6(a).sin6_addr, &reinterpret_cast<const sockaddr_in6&>(b).sin6_addr,
                     sizeof(in6_addr)) == 0;
}

// Calls f with every interface that has an IPv4 or IPv6 address, until it returns true.
void find_interface(const std::function<bool(const ifaddrs&)>& f) {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return;
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, freeifaddrs);
  for (const ifaddrs* entry = list; entry; entry = entry->ifa_next) {
    if (!entry->ifa_addr) continue;
    if (entry->ifa_addr->sa_family != AF_INET && entry->ifa_addr->sa_family != AF_INET6) continue;
    if (f(*entry)) return;
  }
}

}  // namespace

Result<sockaddr_storage> parse_address(const std::string& text) {
  const auto bad = [&] {
    return Error{Code::kInvalidArgument, fmt::format("address '{}', expected host:port", text)};
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return bad();
  unsigned port = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data() + colon + 1, end, port);
  if (parsed.ec != std::errc() || parsed.ptr != end || port == 0 || port > 65535) return bad();
  std::string host = text.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return resolve(host, static_cast<uint16_t>(port));
}

Result<sockaddr_storage> resolve(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int failed = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (failed) return Error{Code::kUnavailable, fmt::format("host '{}': {}", host, gai_strerror(failed))};
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(list, freeaddrinfo);
  const addrinfo* chosen = list;  // IPv4 first, as UCX's tcp prefers it too
  for (const addrinfo* entry = list; entry; entry = entry->ai_next) {
    if (entry->ai_family != AF_INET) continue;
    chosen = entry;
    break;
  }
  sockaddr_storage address{};
  std::memcpy(&address, chosen->ai_addr, chosen->ai_addrlen);
  return address;
}

std::string format_address(const sockaddr_storage& address) {
  char host[INET6_ADDRSTRLEN] = "?";
  if (address.ss_family == AF_INET6) {
    inet_ntop(AF_INET6, &v6(address).sin6_addr, host, sizeof host);
    return fmt::format("[{}]:{}", host, port_of(address));
  }
  inet_ntop(AF_INET, &v4(address).sin_addr, host, sizeof host);
  return fmt::format("{}:{}", host, port_of(address));
}

socklen_t length_of(const sockaddr_storage& address) {
  return address.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
}

uint16_t port_of(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6 ? v6(address).sin6_port : v4(address).sin_port);
}

bool is_wildcard(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET6) return IN6_IS_ADDR_UNSPECIFIED(&v6(address).sin6_addr);
  return v4(address).sin_addr.s_addr == INADDR_ANY;
}

std::string device_of(const sockaddr_storage& address) {
  std::string device;
  find_interface([&](const ifaddrs& entry) {
    if (!same_host(address, *entry.ifa_addr)) return false;
    device = entry.ifa_name;
    return true;
  });
  return device;
}

sockaddr_storage reachable_address() {
  sockaddr_storage address{};
  auto& loopback = reinterpret_cast<sockaddr_in&>(address);
  loopback.sin_family = AF_INET;
  loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  find_interface([&](const ifaddrs& entry) {
    const bool fits = (entry.ifa_flags & IFF_UP) && !(entry.ifa_flags & IFF_LOOPBACK);
    if (!fits || entry.ifa_addr->sa_family != AF_INET) return false;
    std::memcpy(&address, entry.ifa_addr, sizeof(sockaddr_in));
    return true;
  });
  return address;
}

}  // namespace lowkey::transport
