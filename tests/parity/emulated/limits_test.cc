// What a device refuses or traps on, the emulation does, too.
#include <gtest/gtest.h>

#include "kernels/cuda/async_copies.h"
#include "kernels/cuda/code_tables.h"

namespace lowkey::kernels::cuda {
namespace {

void launch_empty(emulation::Dim3 grid, emulation::Dim3 block, size_t shared_bytes) {
  emulation::run_grid(grid, block, shared_bytes, [] {});
}

TEST(EmulatedLimits, OfLaunches) {
  launch_empty({2, 65535}, {1}, 0);
  launch_empty({1}, {1024}, size_t{227} << 10);
  EXPECT_DEATH(launch_empty({1, 65536}, {32}, 0), "grid of 1 x 65536");
  EXPECT_DEATH(launch_empty({1, 1, 65536}, {32}, 0), "grid of 1 x 1 x 65536");
  EXPECT_DEATH(launch_empty({1}, {1025}, 0), "block of 1025 threads");
  EXPECT_DEATH(launch_empty({1}, {32}, (size_t{227} << 10) + 1), "bytes of shared memory");
}

TEST(EmulatedLimits, OfBulkCopies) {
  struct alignas(16) Words {
    std::byte bytes[64];
  } from{}, to{};
  uint64_t barrier = 0;
  barrier_init(&barrier);
  bulk_copy(to.bytes + 16, from.bytes, 48, &barrier);
  EXPECT_DEATH(bulk_copy(to.bytes + 8, from.bytes, 48, &barrier), "cudaErrorInvalidValue");
  EXPECT_DEATH(bulk_copy(to.bytes, from.bytes + 4, 48, &barrier), "cudaErrorInvalidValue");
  EXPECT_DEATH(bulk_copy(to.bytes, from.bytes, 40, &barrier), "cudaErrorInvalidValue");
  EXPECT_DEATH(bulk_copy(to.bytes, from.bytes, 0, &barrier), "cudaErrorInvalidValue");
}

// The instruction's table (PTX ISA, prmt): the fourth bit of a selector repeats the sign of the byte.
TEST(BytePermutation, RepeatsSigns) {
  EXPECT_EQ(byte_perm(0x44332211u, 0x88776655u, 0x7351u), 0x88446622u);
  EXPECT_EQ(byte_perm(0x44332211u, 0x88776655u, 0xf351u), 0xff446622u);
  EXPECT_EQ(byte_perm(0x44332211u, 0x88776655u, 0x7b51u), 0x88006622u);
}

}  // namespace
}  // namespace lowkey::kernels::cuda
