// 128-bit identity of pages, models and layouts (XXH3-128).
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

namespace lowkey {

struct Hash128 {
  uint64_t hi = 0;
  uint64_t lo = 0;

  auto operator<=>(const Hash128&) const = default;
  bool is_zero() const { return hi == 0 && lo == 0; }
  std::string hex() const;  // 32 hexadecimal digits
};

// H(parent || bytes): chains of hashes identify token prefixes.
Hash128 hash128(std::span<const std::byte> bytes, const Hash128& parent = {});
Hash128 hash128(const std::string& text, const Hash128& parent = {});

// Content checksum of a slab: XXH3-64 over 4 KiB blocks, then XXH3-64 of those 64-bit values
// (little-endian); a tree, so that a GPU warp can take a block each.
uint64_t slab_checksum(std::span<const std::byte> bytes);

}  // namespace lowkey

template <>
struct std::hash<lowkey::Hash128> {
  size_t operator()(const lowkey::Hash128& h) const noexcept { return h.lo ^ (h.hi * 0x9e3779b97f4a7c15ull); }
};
