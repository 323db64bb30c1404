// What the device is asked for when slabs are restored: few long copies.
#include "kernels/cuda/page_copies.h"

#include <gtest/gtest.h>

#include "kernels/cuda/cuda_backend.h"

namespace lowkey::kernels::cuda {
namespace {

// Operations that an upload of `count` slabs, one behind the other on the host, puts on streams.
uint64_t operations(int count, size_t bytes, bool neighbours) {
  const auto backend = make_cuda_backend(0, DType::kBf16).value();
  PageCopies& copies = *backend->page_copies();
  const auto device = backend->allocate(2 * count * bytes);
  const auto host = copies.staging(count * bytes);
  std::vector<PageCopies::Piece> pieces;
  for (int i = 0; i < count; ++i)
    pieces.push_back({device->data() + (neighbours ? i : 2 * i) * bytes, host->data() + i * bytes, bytes});
  const uint64_t before = emulation::calls().launches;
  EXPECT_TRUE(copies.upload(pieces).ok());
  return emulation::calls().launches - before;
}

TEST(PageCopies, SlabsCrossInLongCopies) {
  // For 2 MiB: a copy and a launch, the events between their streams, waiting for the stage and the
  // downloads.
  const uint64_t one = operations(32, size_t{64} << 10, false);
  EXPECT_LE(one, 8u);
  EXPECT_LE(operations(128, size_t{64} << 10, false), 4 * one);
  EXPECT_LE(operations(200, size_t{4} << 10, false), one);
  EXPECT_LE(operations(128, size_t{64} << 10, true), one);  // one run on both sides
  EXPECT_EQ(operations(8, size_t{2} << 20, false), operations(4, size_t{2} << 20, false) + 4);
}

// A second upload finds all stages free, whatever the first one left in them.
TEST(PageCopies, UploadsMayFollowEachOther) {
  const auto backend = make_cuda_backend(0, DType::kBf16).value();
  PageCopies& copies = *backend->page_copies();
  constexpr size_t kBytes = 48;
  const auto device = backend->allocate(64 * kBytes);
  const auto host = copies.staging(64 * kBytes);
  for (int i = 0; i < 64; ++i) {
    std::fill_n(host->data() + i * kBytes, kBytes, std::byte(i + 1));
    const PageCopies::Piece piece{device->data() + (63 - i) * kBytes, host->data() + i * kBytes, kBytes};
    ASSERT_TRUE(copies.upload({&piece, 1}).ok());
  }
  std::vector<std::byte> found(64 * kBytes);
  backend->download(device->data(), found);
  for (size_t i = 0; i < found.size(); ++i) EXPECT_EQ(found[i], std::byte(64 - i / kBytes)) << i;
}

}  // namespace
}  // namespace lowkey::kernels::cuda
