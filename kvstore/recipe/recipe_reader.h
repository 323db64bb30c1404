// The grammar of recipe files. Private to this folder (it pulls in yaml-cpp).
#pragma once

#include <yaml-cpp/yaml.h>

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvstore/recipe/recipe.h"

namespace lowkey::kvstore {

// read_recipe() and parse_recipe() of a recipe that another one's pages are spilled in.
Result<Recipe> read_spill_recipe(const std::filesystem::path& file, int page_tokens);

// Reads one recipe. Every key is declared once, where it is read: its name, and either how its value is
// taken, or why it is not served. Rules between dials: recipe_rules.h.
class RecipeReader {
 public:
  // `where` stands for the file in errors, and recipes that it names are found beside it; outlives this.
  // `page_tokens`: where it does not say. `spilled`: the recipe is what another one's pages are spilled in.
  RecipeReader(const std::string& where, int page_tokens, bool spilled)
      : where_(where), page_tokens_(page_tokens), spilled_(spilled) {
    recipe_.page_tokens = page_tokens;
  }

  Result<Recipe> read(const YAML::Node& root);

 private:
  // What `features:` and `bits:` say of one side, before defaults.
  struct SideText {
    std::optional<BasisKind> basis;
    std::optional<double> keep;
    std::optional<kernels::Quantizer> quantizer;
    std::optional<int> width;
    std::optional<kernels::ScaleAxis> axis;
    std::optional<int> group;
    std::optional<bool> online_scale;
  };
  using Read = std::function<Status(const YAML::Node&)>;
  struct Key {
    std::string_view name;
    Read read;
  };
  template <class T>
  struct Word {
    std::string_view word;
    T value;
  };
  struct Unserved {
    std::string_view word;
    std::string_view reason;
  };

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
  // What both sides say under what one side says, with defaults; refuses what its quantizer does not have.
  Result<SideDials> make_side(const SideText& own) const;

  // Every key of `map` is one of `keys` and appears once; `path` is "" at the top.
  Status read_map(const YAML::Node& map, const std::string& path, const std::vector<Key>& keys) const;
  Read refuse(std::string path, std::string_view reason) const;
  Read integer(std::string path, int low, int high, int& out) const;
  template <class T>
  Read number(std::string path, double low, double high, T& out) const;
  Read text(std::string path, std::string& out) const;
  // `out` takes the value of the word; other words are refused, the unserved ones by their reason.
  template <class T, class Out>
  Read choice(std::string path, std::vector<Word<T>> words, std::vector<Unserved> unserved, Out& out) const;
  Error error(const YAML::Node& at, const std::string& what) const;
  Error error_in(const char* key, const std::string& what) const;  // at the line of a top-level key

  const std::string& where_;
  const int page_tokens_;
  const bool spilled_;
  Recipe recipe_;
  bool per_head_ = false;
  SideText both_, key_, value_;
  YAML::Node root_;
};

}  // namespace lowkey::kvstore
