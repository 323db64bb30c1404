#include "base/hash128.h"

#define XXH_STATIC_LINKING_ONLY  // states on the stack
#include <xxhash.h>
#ifdef __x86_64__
#include <xxh_x86dispatch.h>  // the widest vectors that the processor has
#endif

#include <algorithm>
#include <vector>

#include <spdlog/fmt/fmt.h>

namespace lowkey {

std::string Hash128::hex() const {
  return fmt::format("{:016x}{:016x}", hi, lo);
}

Hash128 hash128(std::span<const std::byte> bytes, const Hash128& parent) {
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  XXH3_128bits_update(&state, &parent, sizeof(parent));
  XXH3_128bits_update(&state, bytes.data(), bytes.size());
  const XXH128_hash_t digest = XXH3_128bits_digest(&state);
  return {digest.high64, digest.low64};
}

Hash128 hash128(const std::string& text, const Hash128& parent) {
  return hash128(std::as_bytes(std::span(text.data(), text.size())), parent);
}

uint64_t slab_checksum(std::span<const std::byte> bytes) {
  constexpr size_t kBlock = 4096;
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (size_t begin = 0; begin < bytes.size(); begin += kBlock) {
    const size_t n = std::min(kBlock, bytes.size() - begin);
    const uint64_t block = XXH3_64bits(bytes.data() + begin, n);
    XXH3_64bits_update(&state, &block, sizeof(block));
  }
  return XXH3_64bits_digest(&state);
}

}  // namespace lowkey
