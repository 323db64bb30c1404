#include "kvstore/recipe/recipe_rules.h"

#include <spdlog/fmt/fmt.h>

#include <array>

namespace lowkey::kvstore {

using kernels::Quantizer;
using kernels::ScaleAxis;

namespace {

using Broken = std::optional<BrokenRule>;

Broken side_rules(const Recipe& recipe, const SideDials& side) {
  const bool identity = side.basis == BasisKind::kIdentity;
  if (identity && side.keep < 1)
    return BrokenRule{"features",
                      "features: keep: the identity basis has no unimportant features to leave out"};
  if (side.width == kWidthAuto) {
    if (identity)
      return BrokenRule{
          "bits", "bits: width: auto: bits are allocated to features by importance, which needs a basis"};
    if (side.quantizer != Quantizer::kEmbedded)
      return BrokenRule{"bits", "bits: width: auto: the profile's budgets are priced for embedded codes"};
    if (side.keep < 1)
      return BrokenRule{"features",
                        "features: keep: width: auto leaves features out itself (0 bits); keep must be 1"};
    if (recipe.budget.empty())
      return BrokenRule{"bits",
                        "bits: width: auto: expected a budget of the profile (budget: 4x), found none"};
    if (recipe.levels.size() > 1 && !recipe.levels_of_budget)
      return BrokenRule{"stream",
                        "stream: levels: with width: auto the budget says where they are cut: expected their "
                        "number, found shares"};
  } else if (recipe.levels_of_budget) {
    return BrokenRule{"stream",
                      "stream: levels: their number alone needs a budget that is cut (bits: width: auto): "
                      "expected shares"};
  }
  if (side.quantizer == Quantizer::kAffine && side.axis == ScaleAxis::kChannel &&
      recipe.page_tokens % side.scale_span != 0)
    return BrokenRule{"bits",
                      fmt::format("bits: group: tokens that share a scale must complete together: expected "
                                  "a divisor of page_tokens ({}), found {}",
                                  recipe.page_tokens, side.scale_span)};
  if (recipe.levels.size() > 1 && identity && side.quantizer != Quantizer::kEmbedded)
    return BrokenRule{"stream",
                      "stream: levels: only embedded codes are cut between bits, and only a basis orders the "
                      "features to be cut between"};
  return {};
}

Broken feature_rules(const Recipe& recipe) {
  const SideDials &key = recipe.key, &value = recipe.value;
  if (key.basis != value.basis && key.basis != BasisKind::kIdentity && value.basis != BasisKind::kIdentity)
    return BrokenRule{"features",
                      fmt::format("features: basis: a profile holds one kind of basis, found {} for keys and "
                                  "{} for values",
                                  to_string(key.basis), to_string(value.basis))};
  const bool per_head = key.per_head,
             takes_budget = per_head || key.width == kWidthAuto || value.width == kWidthAuto;
  if (per_head && (!recipe.needs_profile() || key.keep != value.keep || key.keep == 1))
    return BrokenRule{
        "features",
        "features: allocate: per_head: the profile spreads one keep below 1 over keys and values"};
  if (per_head && (key.width == kWidthAuto || value.width == kWidthAuto))
    return BrokenRule{"features",
                      "features: allocate: per_head: width: auto allocates features and bits together"};
  if (!recipe.budget.empty() && !takes_budget)
    return BrokenRule{"budget",
                      "budget: only width: auto and allocate: per_head take a budget of the profile"};
  if (!recipe.profile.empty() && !recipe.needs_profile())
    return BrokenRule{"profile", "profile: the identity basis takes none"};
  return {};
}

Broken token_rules(const Recipe& recipe) {
  if (!recipe.tokens) return {};
  if (!recipe.exact_prefill)
    return BrokenRule{
        "tokens",
        "tokens: scores are of exact attention over the whole prompt, so its pages are its own: "
        "expected stream: {prefill: exact}"};
  if (recipe.join != 1)
    return BrokenRule{"tokens",
                      "tokens: every head keeps its own tokens, so heads cannot be joined: expected heads: "
                      "{join: 1}"};
  const double most = recipe.tokens->heavy_of_bank(0, 2) + recipe.tokens->recent;
  if (most <= 0) return BrokenRule{"tokens", "tokens: budget: expected some tokens, found none"};
  if (most > 1)
    return BrokenRule{
        "tokens", fmt::format("tokens: budget: expected at most 1 of the prompt, found {:.2f} in the first "
                              "layer",
                              most)};
  return {};
}

Broken archive_rules(const Recipe& recipe) {
  if (!recipe.exact_prefill) {
    if (recipe.recent_block > 0)
      return BrokenRule{
          "hot",
          "hot: flush: a window longer than the incomplete page needs stream: {prefill: exact}: with "
          "encoded prefill a page is encoded as soon as it is complete"};
    return {};
  }
  if (recipe.sink_tokens > 0)
    return BrokenRule{
        "hot",
        "hot: sink: with prefill: exact tokens are encoded when the prompt is complete, none beside "
        "them: expected 0"};
  if (recipe.levels.size() > 1)
    return BrokenRule{
        "stream",
        "stream: levels: with prefill: exact pages belong to one sequence and are not spilled, so "
        "there is nothing to cut"};
  if (recipe.recent_block % recipe.page_tokens != 0)
    return BrokenRule{"hot", fmt::format("hot: flush: expected whole pages of {} tokens, found {}",
                                         recipe.page_tokens, recipe.recent_block)};
  return {};
}

Broken page_rules(const Recipe& recipe) {
  if (recipe.page_tokens % 16 != 0)
    return BrokenRule{"stream", fmt::format("stream: page_tokens: expected a multiple of 16, found {}",
                                            recipe.page_tokens)};
  if (recipe.sink_tokens > recipe.page_tokens)
    return BrokenRule{"hot", fmt::format("hot: sink: expected at most one page ({} tokens), found {}",
                                         recipe.page_tokens, recipe.sink_tokens)};
  return {};
}

// What is spilled goes by pages that others may read again.
Broken spill_rules(const Recipe& recipe) {
  const auto broken = [](std::string what) { return BrokenRule{"stream", "stream: spill: " + what}; };
  const int levels = static_cast<int>(recipe.levels.size());
  if (recipe.spill_levels > levels)
    return broken(
        fmt::format("expected at most the {} of stream: levels, found {}", levels, recipe.spill_levels));
  if (recipe.has_archive() && (recipe.spill_levels > 0 || recipe.spilled))
    return broken("with prefill: exact pages belong to one sequence and are not spilled: leave it out");
  if (!recipe.spilled) return {};
  const Recipe& spilled = *recipe.spilled;
  const auto differs = [&](const char* what, int expected, int found) {
    return broken(fmt::format("recipe: {}: {}: expected {}, as in the pages it is made from, found {}",
                              spilled.name, what, expected, found));
  };
  if (spilled.has_archive())
    return broken(fmt::format("recipe: {}: it chooses tokens or encodes them late, which needs the prompt",
                              spilled.name));
  if (spilled.share != recipe.share)
    return broken(fmt::format("recipe: {}: expected the same layers: share", spilled.name));
  if (spilled.page_tokens != recipe.page_tokens)
    return differs("stream: page_tokens", recipe.page_tokens, spilled.page_tokens);
  if (spilled.sink_tokens != recipe.sink_tokens)
    return differs("hot: sink", recipe.sink_tokens, spilled.sink_tokens);
  return {};
}

}  // namespace

Broken broken_rule(const Recipe& recipe) {
  for (const auto rule : {page_rules, feature_rules, token_rules, archive_rules, spill_rules})
    if (const Broken broken = rule(recipe)) return broken;
  for (const SideDials* side : {&recipe.key, &recipe.value})
    if (const Broken broken = side_rules(recipe, *side)) return broken;
  return {};
}

}  // namespace lowkey::kvstore
