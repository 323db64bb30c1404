// A calibration profile from anywhere: one error line, or numbers that pages are made from, or refused by.
#include <cstdint>

#include "base/check.h"
#include "kvstore/recipe/resolve.h"

using namespace lowkey;
using namespace lowkey::kvstore;

// Whatever the profile has, under every budget of it.
static void resolve_with(const Profile& profile) {
  const ModelShape model{.name = "fuzz",
                         .num_layers = profile.num_banks,
                         .num_kv_heads = profile.num_kv_heads,
                         .head_dim = profile.head_dim};
  Recipe recipe{.name = "fuzz", .join = profile.join};
  for (const BasisKind basis : {BasisKind::kPca, BasisKind::kWeighted, BasisKind::kTrained})
    if (profile.basis == to_string(basis)) recipe.key.basis = recipe.value.basis = basis;
  if (!recipe.needs_profile()) return;
  for (const Budget& budget : profile.budgets) {
    recipe.budget = budget.name;
    recipe.levels.assign(budget.levels, 1.0);
    recipe.levels_of_budget = true;
    for (SideDials* side : {&recipe.key, &recipe.value}) {
      side->quantizer = kernels::Quantizer::kEmbedded;
      side->width = kWidthAuto;
    }
    const auto cache = resolve(recipe, &profile, model, 0, 1);
    LOWKEY_CHECK(cache.ok() || !cache.error().message.empty());
  }
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto profile = Profile::parse({reinterpret_cast<const std::byte*>(data), size}, "fuzz");
  if (profile) return resolve_with(*profile), 0;
  LOWKEY_CHECK(profile.error().code == Code::kBadInput && !profile.error().message.empty());
  LOWKEY_CHECK(profile.error().message.find('\n') == std::string::npos, "{}", profile.error().message);
  return 0;
}
