#include "kvstore/page/page_identity.h"

#include <array>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace lowkey::kvstore {

Hash128 root_identity(const Hash128& model_fingerprint, const Hash128& layout_fingerprint,
                      std::string_view salt) {
  const std::array<Hash128, 2> fingerprints{model_fingerprint, layout_fingerprint};
  const Hash128 root = hash128(std::as_bytes(std::span(fingerprints)));
  return hash128(std::as_bytes(std::span(salt.data(), salt.size())), root);
}

Hash128 chain_hash(const Hash128& parent, std::span<const int32_t> tokens) {
  return hash128(std::as_bytes(tokens), parent);
}

uint64_t tokens_hash(std::span<const int32_t> tokens) {
  constexpr uint64_t kSeed = 0x6c6f776b6579;  // any; 0 is what is taken where nobody thought of it
  return XXH64(tokens.data(), tokens.size_bytes(), kSeed);
}

Hash128 rank_identity(const Hash128& identity, int rank, int num_ranks) {
  const std::array<int32_t, 2> slice{rank, num_ranks};
  return hash128(std::as_bytes(std::span(slice)), identity);
}

}  // namespace lowkey::kvstore
