// The end of a restore where pages lie on a device: verified bytes, and nothing else, reach it.
#include "kvstore/service/page_landing.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/hash128.h"
#include "kernels/ops/reference_backend.h"
#include "kvstore/recipe/recipe.h"
#include "kvstore/recipe/resolve.h"
#include "kvstore/service/page_staging.h"
#include "tests/support/guarded_backend.h"

namespace lowkey::kvstore {
namespace {

using Bytes = std::vector<std::byte>;

kernels::PageLayout layout(const char* bits) {
  const auto recipe = parse_recipe(std::string("name: x\nbits: ") + bits + "\nhot: {sink: 3}\n", "r.yaml");
  const ModelShape model{.num_layers = 2, .num_kv_heads = 2, .head_dim = 32, .dtype = kernels::DType::kF32};
  return std::move(resolve(*recipe, nullptr, model, 0, 1).value().pages);
}

Bytes numbers(size_t bytes, float first) {
  std::vector<float> values(bytes / sizeof(float));
  for (size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i % 97) / 64;
  Bytes out(bytes);
  std::memcpy(out.data(), values.data(), values.size() * sizeof(float));
  return out;
}

struct Device {
  testing::GuardedBackend backend{kernels::make_reference_backend(kernels::DType::kF32)};
  std::vector<std::unique_ptr<kernels::Buffer>> buffers;

  std::span<std::byte> allocate(size_t bytes) {
    buffers.push_back(backend.allocate(bytes));
    return {buffers.back()->data(), bytes};
  }
  Bytes read(std::span<const std::byte> memory) {
    Bytes found(memory.size());
    backend.download(memory.data(), found);
    return found;
  }
};

FetchedPage fetched(Device& device, const Bytes& bytes) {
  FetchedPage page;
  page.fetched[0] = bytes;
  page.checksums[0] = slab_checksum(bytes);
  page.target[0] = device.allocate(bytes.size());
  return page;
}

TEST(PageLanding, WhatIsNotVerifiedNeverReachesADevice) {
  Device device;
  const SpillFormat format{.device = device.backend.page_copies()};
  const std::vector<Bytes> bytes = {numbers(4096, 1), numbers(4096, 2), numbers(4096, 3)};
  std::vector<FetchedPage> pages;
  for (const Bytes& of : bytes) pages.push_back(fetched(device, of));
  pages[1].checksums[0] ^= 1;
  EXPECT_EQ(land(pages, format, [](bool) { return true; }), (std::vector<bool>{true, false, true}));
  EXPECT_EQ(device.read(pages[0].target[0]), bytes[0]);
  EXPECT_EQ(device.read(pages[1].target[0]), Bytes(4096));
  EXPECT_EQ(device.read(pages[2].target[0]), bytes[2]);
  EXPECT_EQ(device.backend.page_copies()->uploads(), 1u) << "one batch";
  // Without gaps it ends at the damaged one.
  EXPECT_EQ(land(pages, format, [](bool good) { return good; }), (std::vector<bool>{true, false}));
}

TEST(PageLanding, PagesOfAnotherFormatAreDecodedOnTheWay) {
  Device device;
  SpillFormat format{
      .transcoder = std::make_shared<PageTranscoder>(layout("{width: full}"), layout("{width: 8}")),
      .device = device.backend.page_copies()};
  const kernels::PageLayout& hot = format.transcoder->hot();
  const kernels::PageLayout& spilled = format.transcoder->spilled();
  const std::vector<Bytes> page = {numbers(hot.slab_bytes[0], 1), numbers(hot.slab_bytes[1], 1)};
  std::vector<Bytes> stored = {Bytes(spilled.slab_bytes[0]), Bytes(spilled.slab_bytes[1])};
  std::vector<Bytes> expected = {Bytes(hot.slab_bytes[0]), Bytes(hot.slab_bytes[1])};
  format.transcoder->spill({page[0], page[1]}, {stored[0], stored[1]});
  format.transcoder->restore({stored[0], stored[1]}, {expected[0], expected[1]});

  FetchedPage back;
  for (int i = 0; i < 2; ++i) {
    back.fetched[i] = stored[i];
    back.checksums[i] = slab_checksum(stored[i]);
    back.target[i] = device.allocate(hot.slab_bytes[i]);
  }
  EXPECT_EQ(land({&back, 1}, format, [](bool) { return true; }), std::vector<bool>{true});
  for (int i = 0; i < 2; ++i) EXPECT_EQ(device.read(back.target[i]), expected[i]) << "slab " << i;
}

// A page that is still on its way from a device is waited for before anything reads it.
TEST(PageStaging, WaitsForWhatIsArriving) {
  Device device;
  const Bytes bytes = numbers(4096, 5);
  const auto memory = device.allocate(bytes.size());
  device.backend.upload(bytes, memory.data());
  Bytes copy(bytes.size());
  PageWrite page{.checksummed = false};
  page.slabs[0] = copy;
  page.header.levels_present = 1;
  const kernels::PageCopies::Piece piece{memory.data(), copy.data(), copy.size()};
  page.arriving = device.backend.page_copies()->begin_download({&piece, 1});
  TransferBuffers buffers(1, 1, nullptr);
  ASSERT_TRUE(needs_staging(page, {}));
  EXPECT_EQ(stage(page, {}, buffers), Staged::kReady);
  EXPECT_EQ(page.header.checksums[0], slab_checksum(bytes));
}

}  // namespace
}  // namespace lowkey::kvstore
