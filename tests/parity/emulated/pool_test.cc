#include <gtest/gtest.h>

#include "kernels/cuda/device_pool.h"

namespace lowkey::kernels::cuda {
namespace {

uint64_t mallocs() {
  return emulation::calls().device_allocations;
}

TEST(DevicePool, WhatWasGivenBackServesTheNextOne) {
  const auto pool = DevicePool::create();
  std::byte* address = nullptr;
  {
    auto first = pool->allocate(5000).value();
    address = first.data();
    EXPECT_EQ(first.size(), 5000u);
    EXPECT_EQ(pool->idle_bytes(), 0u);
  }
  const uint64_t generation = pool->generation(), before = mallocs();
  EXPECT_EQ(pool->idle_bytes(), DevicePool::block_bytes(5000));
  auto again = pool->allocate(5100).value();
  EXPECT_EQ(again.data(), address);
  EXPECT_EQ(mallocs(), before);
  EXPECT_EQ(pool->generation(), generation);  // taking moves nobody
  auto other = pool->allocate(5100).value();
  EXPECT_NE(other.data(), address);
  EXPECT_EQ(mallocs(), before + 1);
  other = {};
  EXPECT_GT(pool->generation(), generation);
}

TEST(DevicePool, LosesLessThanAnEighth) {
  for (const size_t bytes :
       {size_t{1}, size_t{256}, size_t{257}, size_t{4097}, size_t{1} << 20, (size_t{3} << 20) + 5}) {
    const size_t block = DevicePool::block_bytes(bytes);
    EXPECT_GE(block, bytes);
    EXPECT_EQ(block % 256, 0u);
    EXPECT_LE(block, std::max<size_t>(bytes + bytes / 8 + 256, 256)) << bytes;
    EXPECT_EQ(DevicePool::block_bytes(block), block);
  }
}

TEST(DevicePool, LargeBlocksAndTrimmedOnesGoBackToTheDevice) {
  const size_t before = emulation::allocated_bytes();
  const auto pool = DevicePool::create();
  { const auto large = pool->allocate((size_t{64} << 20) + 1).value(); }
  EXPECT_EQ(emulation::allocated_bytes(), before);
  { const auto small = pool->allocate(1 << 20).value(); }
  EXPECT_GT(emulation::allocated_bytes(), before);
  pool->trim();
  EXPECT_EQ(emulation::allocated_bytes(), before);
}

// Buffers hold their pool; what idles in it is freed before anybody is told that there is no more.
TEST(DevicePool, OutlivedByBuffersAndEmptiedWhenMemoryIsShort) {
  emulation::machine().device_bytes = emulation::allocated_bytes() + (size_t{48} << 20);
  auto pool = DevicePool::create();
  { const auto idle = pool->allocate(size_t{32} << 20).value(); }
  auto buffer = pool->allocate(size_t{40} << 20);
  ASSERT_TRUE(buffer.ok()) << buffer.error().message;
  const auto refused = pool->allocate(size_t{32} << 20);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::kResourceExhausted);
  pool.reset();
  buffer.value() = {};
  emulation::machine() = {};
}

}  // namespace
}  // namespace lowkey::kernels::cuda
