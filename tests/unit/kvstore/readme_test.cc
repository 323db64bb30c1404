// The numbers in kvstore/README.md are those of the layout that they describe.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "kvstore/recipe/resolve.h"

namespace lowkey::kvstore {
namespace {

std::string with_commas(uint64_t number) {
  std::string text = std::to_string(number);
  for (int at = static_cast<int>(text.size()) - 3; at > 0; at -= 3) text.insert(at, ",");
  return text;
}

TEST(Readme, TheBytePictureIsTheLayout) {
  std::ifstream in(LOWKEY_SOURCE_DIR "/kvstore/README.md");
  std::ostringstream readme;
  readme << in.rdbuf();
  const auto recipe = read_recipe(LOWKEY_SOURCE_DIR "/recipes/q8.yaml");
  ASSERT_TRUE(recipe.ok());
  const auto cache = resolve(*recipe, nullptr, {.num_layers = 30, .num_kv_heads = 3, .head_dim = 64}, 0, 1);
  ASSERT_TRUE(cache.ok());
  const kernels::PageLayout* layout = &cache->pages;
  const uint64_t bytes = layout->bytes_for_tokens(2048), bf16 = layout->bf16_bytes_for_tokens(2048);
  const auto expect = [&](const std::string& text) {
    EXPECT_NE(readme.str().find(text), std::string::npos) << "kvstore/README.md lacks: " << text;
  };
  expect(with_commas(layout->tail_bytes) + " B once per running sequence");
  expect("slab 0     " + with_commas(layout->slab_bytes[0]) + " B");
  expect("× " + with_commas(layout->slab_bytes[0] / (30 * 2 * 3)) + " B");
  expect("sink slab  " + with_commas(layout->slab_bytes[layout->sink_slab()]) + " B");
  expect(fmt::format(
      "{} pages + sink + tail = {} B, against {} B in bf16: {:.2f} times fewer; {:.2f} per further page",
      2048 / layout->page_tokens, with_commas(bytes), with_commas(bf16), double(bf16) / bytes,
      bf16 / 2048.0 / layout->bytes_per_token()));
}

}  // namespace
}  // namespace lowkey::kvstore
