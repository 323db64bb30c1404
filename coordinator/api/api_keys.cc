#include "coordinator/api/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>

#include "base/check.h"

namespace lowkey::coordinator {
namespace {

// A label keeps digests of different kinds apart, its end marked so that no text runs into another.
std::string sha256(std::string_view label, std::string_view first, std::string_view second = {}) {
  std::string text(label);
  text += '\0';
  text += std::to_string(first.size());
  text += '\0';
  text += first;
  text += second;
  std::string digest(32, '\0');
  unsigned length = 0;
  const int done = EVP_Digest(text.data(), text.size(), reinterpret_cast<unsigned char*>(digest.data()),
                              &length, EVP_sha256(), nullptr);
  LOWKEY_CHECK(done == 1 && length == digest.size(), "SHA-256 of {} bytes", length);
  return digest;
}

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

}  // namespace

ApiKeys::ApiKeys(std::string_view keys) {
  while (!keys.empty()) {
    const size_t comma = std::min(keys.find(','), keys.size());
    if (const auto key = trimmed(keys.substr(0, comma)); !key.empty())
      tenants_.push_back(sha256("lowkey key", key));
    keys.remove_prefix(std::min(comma + 1, keys.size()));
  }
}

std::optional<std::string> ApiKeys::tenant(std::string_view authorization) const {
  constexpr std::string_view kScheme = "Bearer ";
  if (none()) return std::string();
  if (authorization.substr(0, kScheme.size()) != kScheme) return std::nullopt;
  // Digests of one size are compared, so that nothing depends on how much of a key is right.
  const std::string sent = sha256("lowkey key", authorization.substr(kScheme.size()));
  std::optional<std::string> found;
  for (const auto& tenant : tenants_)
    if (CRYPTO_memcmp(tenant.data(), sent.data(), sent.size()) == 0) found = tenant;
  return found;
}

std::string cache_salt_of(std::string_view tenant, std::string_view cache_salt) {
  if (tenant.empty() && cache_salt.empty()) return {};
  return sha256("lowkey salt", tenant, cache_salt);
}

}  // namespace lowkey::coordinator
