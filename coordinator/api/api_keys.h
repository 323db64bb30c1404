// The API keys that clients may send, and who may share cached pages with whom. Immutable; any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lowkey::coordinator {

class ApiKeys {
 public:
  // Comma-separated; spaces around a key do not belong to it, empty ones do not count. None: no check.
  explicit ApiKeys(std::string_view keys);

  bool none() const { return tenants_.empty(); }
  // The tenant of an Authorization header's value, "Bearer KEY": names the key without telling it; empty
  // where there are no keys. Nothing: the key is missing or wrong. Compares with every key, and takes as long
  // whichever is right and wherever they differ.
  std::optional<std::string> tenant(std::string_view authorization) const;

 private:
  std::vector<std::string> tenants_;  // SHA-256 of each key; the keys themselves are not kept
};

// What page identities are salted with: tenants, and values of `cache_salt` within a tenant, share no pages.
// Empty when both are: shared by all. Otherwise 32 bytes that tell neither, the same after every start.
std::string cache_salt_of(std::string_view tenant, std::string_view cache_salt);

}  // namespace lowkey::coordinator
