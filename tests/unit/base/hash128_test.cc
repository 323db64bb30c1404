#include "base/hash128.h"

#include <gtest/gtest.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <set>
#include <vector>

namespace lowkey {
namespace {

std::vector<std::byte> some_bytes(size_t size) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 131 + i / 251);
  return bytes;
}

TEST(Hash128, ChainsDependOnOrderAndParent) {
  auto ab = hash128(std::string("b"), hash128(std::string("a")));
  auto ba = hash128(std::string("a"), hash128(std::string("b")));
  EXPECT_NE(ab, ba);
  EXPECT_EQ(ab, hash128(std::string("b"), hash128(std::string("a"))));
  EXPECT_EQ(ab.hex().size(), 32u);
  EXPECT_TRUE(Hash128{}.is_zero());
}

TEST(SlabChecksum, IsTheTreeThatTheHeaderDescribes) {
  for (size_t size : {0ul, 1ul, 4095ul, 4096ul, 4097ul, 20000ul}) {
    auto bytes = some_bytes(size);
    std::vector<uint64_t> blocks;
    for (size_t at = 0; at < size; at += 4096)
      blocks.push_back(XXH3_64bits(bytes.data() + at, std::min<size_t>(4096, size - at)));
    EXPECT_EQ(slab_checksum(bytes), XXH3_64bits(blocks.data(), blocks.size() * 8)) << size;
  }
}

TEST(SlabChecksum, EveryByteCounts) {
  auto bytes = some_bytes(9000);
  std::set<uint64_t> seen{slab_checksum(bytes)};
  for (size_t at = 0; at < bytes.size(); at += 97) {
    bytes[at] ^= std::byte{1};
    EXPECT_TRUE(seen.insert(slab_checksum(bytes)).second) << at;
    bytes[at] ^= std::byte{1};
  }
}

}  // namespace
}  // namespace lowkey
