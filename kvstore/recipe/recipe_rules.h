// What excludes each other in a recipe, whatever the model.
#pragma once

#include <optional>
#include <string>

#include "kvstore/recipe/recipe.h"

namespace lowkey::kvstore {

struct BrokenRule {
  const char* key;   // top-level key of the recipe that it is about
  std::string what;  // the rule, and why
};

// The first broken rule; none: the recipe can be resolved for some model.
std::optional<BrokenRule> broken_rule(const Recipe& recipe);

}  // namespace lowkey::kvstore
