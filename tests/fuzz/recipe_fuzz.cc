// A recipe from anywhere: one error line, or dials that a model's pages are made from, or refused by.
#include <cstdint>
#include <map>

#include "base/check.h"
#include "kvstore/recipe/recipe.h"
#include "tests/support/random_profile.h"

namespace lowkey::kvstore {
namespace {

const ModelShape kModel{.name = "fuzz", .num_layers = 2, .num_kv_heads = 2, .head_dim = 32};

const Profile* profile_for(const Recipe& recipe) {
  if (!recipe.needs_profile()) return nullptr;
  static std::map<std::pair<std::string, int>, Profile> made;
  const bool key = recipe.key.basis != BasisKind::kIdentity;
  const std::string basis = to_string(key ? recipe.key.basis : recipe.value.basis);
  const int join = recipe.join == 2 || recipe.join == 0 ? 2 : 1;
  const auto [found, missing] = made.try_emplace({basis, join});
  if (missing) found->second = testing::random_profile(kModel, join, 1, basis, 2);
  return &found->second;
}

}  // namespace
}  // namespace lowkey::kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowkey;
  using namespace lowkey::kvstore;
  const auto recipe = parse_recipe({reinterpret_cast<const char*>(data), size}, "/nowhere/fuzz.yaml");
  if (!recipe) {
    LOWKEY_CHECK(recipe.error().code == Code::kBadInput && !recipe.error().message.empty());
    LOWKEY_CHECK(recipe.error().message.find('\n') == std::string::npos, "{}", recipe.error().message);
    return 0;
  }
  if (recipe->spilled) return 0;  // a file of this machine
  const auto cache = resolve(*recipe, profile_for(*recipe), kModel, 0, 1);
  if (!cache) {
    LOWKEY_CHECK(!cache.error().message.empty());
    return 0;
  }
  const kernels::PageLayout& pages = cache->pages;
  LOWKEY_CHECK(pages.page_tokens == recipe->page_tokens && pages.num_levels >= 1 &&
               pages.num_levels <= kernels::kMaxLevels);
  LOWKEY_CHECK(cache->spill_levels >= 1, "{}", cache->spill_levels);
  const uint64_t few = cache->bytes_for(100, 20), many = cache->bytes_for(1000, 200);
  LOWKEY_CHECK(few <= many && many < uint64_t{1} << 32, "{} and {} bytes", few, many);
  return 0;
}
