// The page format is plain data, the same on host and device: what the host encodes, the device decodes to
// the bit. Skips by name where there is no GPU.
#include <gtest/gtest.h>

#include <random>

#include "kernels/page/page_codec.h"
#include "tests/parity/page_decode.cuh"

namespace lowkey::kernels {
namespace {

TEST(PageFormatOnDevice, DecodesWhatTheHostEncoded) {
  if (parity::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  const PageSpec spec = PageSpec::embedded("q8", 8, 0);
  const CacheShape shape{.num_banks = 2, .num_kv_heads = 2, .head_dim = 64, .dtype = DType::kF32};
  const auto layout = PageLayout::make(spec, shape).value();
  std::vector<unsigned char> slab(layout.slab_bytes[0]);
  std::byte* slabs[kMaxSlabs] = {reinterpret_cast<std::byte*>(slab.data())};
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> rows(static_cast<size_t>(layout.page_tokens) * shape.head_dim);
  for (const VectorLayout& vector : layout.vectors) {
    for (float& x : rows) x = normal(random);
    const std::byte* heads[] = {reinterpret_cast<const std::byte*>(rows.data())};
    encode_vector(layout, vector, heads, {slabs});
  }
  for (const VectorLayout& vector : layout.vectors) {
    std::vector<float> expected(rows.size()), found(rows.size(), -1.0f);
    decode_vector(layout, vector, {slabs}, 1, expected.data());
    const char* error = parity::decode_embedded8(
        vector, layout.planes.data(), static_cast<int>(layout.planes.size()), embedded_tables(), slab.data(),
        static_cast<int>(slab.size()), layout.page_tokens, found.data());
    ASSERT_EQ(error, nullptr) << error;
    EXPECT_EQ(found, expected);
  }
}

}  // namespace
}  // namespace lowkey::kernels
