#include "cli/listen_host.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>

#include <algorithm>

namespace lowkey::cli {
namespace {

// The address other hosts can reach this one at: the first that is up and not loopback.
std::string first_external_address() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return "127.0.0.1";
  std::string found = "127.0.0.1";
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET) continue;
    if ((entry->ifa_flags & IFF_UP) == 0 || (entry->ifa_flags & IFF_LOOPBACK) != 0) continue;
    char host[NI_MAXHOST];
    if (getnameinfo(entry->ifa_addr, sizeof(sockaddr_in), host, sizeof(host), nullptr, 0, NI_NUMERICHOST) !=
        0)
      continue;
    found = host;
    break;
  }
  freeifaddrs(list);
  return found;
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address.starts_with("localhost:") || address.starts_with("[::1]");
}

}  // namespace

std::string listen_host_of(const ServeConfig& config, const std::vector<std::string>& hosts) {
  if (!config.cluster_listen.empty()) return config.cluster_listen;
  const bool one_host =
      std::all_of(hosts.begin(), hosts.end(), [&](const auto& host) { return host == hosts[0]; });
  const bool near = config.join.empty() ? one_host : is_loopback(config.join);
  return near ? "127.0.0.1" : first_external_address();
}

}  // namespace lowkey::cli
