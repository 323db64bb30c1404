// A recipe: a short YAML file that sets the five dials (kvstore/README.md). This reads it, checks every key,
// and refuses what cannot combine, with the reason. What depends on the model is resolved in resolve.h.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "kvstore/dials/bits/group_widths.h"
#include "kvstore/dials/features/basis.h"
#include "kvstore/dials/layers/layer_map.h"
#include "kvstore/dials/tokens/token_dial.h"

namespace lowkey::kvstore {

// `features:` and `bits:` of one side.
struct SideDials : FeatureDial, BitDial {};

struct Recipe {
  std::string name = "exact";
  std::string profile;  // stem of the profile file; empty: the recipe's name
  std::string budget;   // of the profile, e.g. "4x", "keep-0.50"; empty: nothing takes one
  LayerShare share = LayerShare::kNone;
  int join = 1;  // 0: all local heads
  std::optional<TokenDial> tokens;
  SideDials key, value;
  int sink_tokens = 0;
  // Exact tokens that are encoded together when there are this many (hot: {flush: N}); a multiple of
  // page_tokens. 0: page by page. With an archive only.
  int recent_block = 0;
  bool exact_prefill = false;
  int page_tokens = 32;
  std::vector<double> levels = {1.0};  // cut points, ascending, the last is 1
  bool levels_of_budget = false;       // their number counts alone: cut where the profile's budget is
  int spill_levels = 0;                // of a page, that a store is given; 0: all
  // stream: {spill: {recipe: FILE}}: what stores are given instead, page by page; null: pages as they are.
  std::shared_ptr<const Recipe> spilled;

  bool needs_profile() const {
    return key.basis != BasisKind::kIdentity || value.basis != BasisKind::kIdentity;
  }
  // Tokens of a prompt stay exact until it is complete, then are chosen or encoded: pages are not shared with
  // other prompts and not spilled.
  bool has_archive() const { return tokens.has_value() || exact_prefill || recent_block > 0; }
  // Stem of the profile's file name.
  const std::string& profile_stem() const { return profile.empty() ? name : profile; }
};

// Reads `file`; an empty path is the built-in `exact`. Errors, kBadInput with file and line: not YAML, an
// unknown key, a value out of range, a setting that is known but not served, settings that exclude each other
// (with the rule). `page_tokens` is what the device likes best, for recipes that do not say.
Result<Recipe> read_recipe(const std::filesystem::path& file, int page_tokens = Recipe().page_tokens);

// The same from text; `where` stands for the file in errors.
Result<Recipe> parse_recipe(const std::string& yaml, const std::string& where);

}  // namespace lowkey::kvstore
