// The grammar of recipe files. Private to this folder (it pulls in yaml-cpp).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "kvstore/recipe/recipe.h"
#include "kvstore/recipe/recipe_fields.h"
#include "kvstore/recipe/side_text.h"

namespace lowkey::kvstore {

// read_recipe() and parse_recipe() of a recipe that another one's pages are spilled in.
Result<Recipe> read_spill_recipe(const std::filesystem::path& file, int page_tokens);

// Reads one recipe. Every key is declared once, where it is read: its name, and either how its value is
// taken, or why it is not served. Rules between dials: recipe_rules.h.
class RecipeReader : private RecipeFields {
 public:
  // `where` stands for the file in errors, and recipes that it names are found beside it; outlives this.
  // `page_tokens`: where it does not say. `spilled`: the recipe is what another one's pages are spilled in.
  RecipeReader(const std::string& where, int page_tokens, bool spilled)
      : RecipeFields(where), page_tokens_(page_tokens), spilled_(spilled) {
    recipe_.page_tokens = page_tokens;
  }

  Result<Recipe> read(const YAML::Node& root);

 private:
  Status read_layers(const YAML::Node& node);
  Status read_heads(const YAML::Node& node);
  Status read_tokens(const YAML::Node& node);
  Status read_token_budget(const YAML::Node& node, TokenDial& dial) const;
  Status read_features(const YAML::Node& node);
  Status read_bits(const YAML::Node& node);
  Status read_hot(const YAML::Node& node);
  Status read_stream(const YAML::Node& node);
  Status read_levels(const YAML::Node& node);
  Status read_spill(const YAML::Node& node);
  std::vector<Key> basis_keys(const std::string& path, SideText& side) const;
  std::vector<Key> code_keys(const std::string& path, SideText& side) const;

  const int page_tokens_;
  const bool spilled_;
  Recipe recipe_;
  bool per_head_ = false;
  SideText both_, key_, value_;
};

}  // namespace lowkey::kvstore
