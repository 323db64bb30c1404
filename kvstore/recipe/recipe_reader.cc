#include "kvstore/recipe/recipe_reader.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "kvstore/recipe/recipe_rules.h"

namespace lowkey::kvstore {

using kernels::Quantizer;
using kernels::ScaleAxis;

namespace {

constexpr std::string_view kMerge =
    "merged layers attend before their partner exists, so they need exact prefill and pages of their own "
    "(MiniCache)";
constexpr std::string_view kPreRope =
    "keys are stored after RoPE; stored before it, every slot needs its position and every read a rotation";
constexpr std::string_view kSlide =
    "an exact window that slides needs pages that change at both ends (KIVI); hot: {flush: N} encodes blocks "
    "of N";

}  // namespace

Result<Recipe> RecipeReader::read(const YAML::Node& root) {
  root_ = root;
  recipe_.name.clear();
  const auto dial = [this](Status (RecipeReader::*read)(const YAML::Node&)) {
    return [this, read](const YAML::Node& node) { return (this->*read)(node); };
  };
  LOWKEY_TRY(read_map(root, "",
                      {{"name", text("name", recipe_.name)},
                       {"layers", dial(&RecipeReader::read_layers)},
                       {"heads", dial(&RecipeReader::read_heads)},
                       {"tokens", dial(&RecipeReader::read_tokens)},
                       {"features", dial(&RecipeReader::read_features)},
                       {"bits", dial(&RecipeReader::read_bits)},
                       {"hot", dial(&RecipeReader::read_hot)},
                       {"stream", dial(&RecipeReader::read_stream)},
                       {"profile", text("profile", recipe_.profile)},
                       {"budget", text("budget", recipe_.budget)}}));
  if (recipe_.name.empty()) return error(root, "name: expected one, found none");
  for (const auto& [said, side] : {std::pair(&key_, &recipe_.key), std::pair(&value_, &recipe_.value)}) {
    auto made = make_side(*said, both_, per_head_);
    if (!made) return error_in("bits", made.error().message);
    *side = *made;
  }
  // The share of features names its budget.
  if (per_head_ && recipe_.budget.empty()) recipe_.budget = fmt::format("keep-{:.2f}", recipe_.key.keep);
  if (recipe_.has_archive() && recipe_.recent_block == 0) recipe_.recent_block = recipe_.page_tokens;
  if (const auto broken = broken_rule(recipe_)) return error_in(broken->key, broken->what);
  return recipe_;
}

Status RecipeReader::read_layers(const YAML::Node& node) {
  return read_map(
      node, "layers",
      {{"share", choice<LayerShare>(
                     "layers: share", {{"none", LayerShare::kNone}, {"model", LayerShare::kModel}},
                     {{"profile", "a searched map needs exact prefill of the layers it replaces (KVSharer)"}},
                     recipe_.share)},
       {"merge", refuse("layers: merge", kMerge)}});
}

Status RecipeReader::read_heads(const YAML::Node& node) {
  return read_map(node, "heads", {{"join", [this](const YAML::Node& value) -> Status {
                                     if (value.IsScalar() && value.Scalar() == "all") {
                                       recipe_.join = 0;
                                       return {};
                                     }
                                     return integer("heads: join", 1, kernels::kMaxGroups,
                                                    recipe_.join)(value);
                                   }}});
}

Status RecipeReader::read_tokens(const YAML::Node& node) {
  TokenDial dial;
  bool all = false, once = false;
  LOWKEY_TRY(read_map(
      node, "tokens",
      {{"keep", choice<bool>("tokens: keep", {{"all", true}}, {}, all)},
       {"score",
        choice<TokenScore>(
            "tokens: score",
            {{"h2o", TokenScore::kColumnSum}, {"snap", TokenScore::kWindowSum}, {"l2", TokenScore::kKeyNorm}},
            {{"probe", "attention has no observer of probe rows (ZipCache)"},
             {"keyformer", "attention has no observer with noise (Keyformer)"},
             {"corm", "attention has no observer of the last hit (CORM)"}},
            dial.score)},
       {"budget", [&](const YAML::Node& value) { return read_token_budget(value, dial); }},
       {"when", choice<bool>("tokens: when", {{"prefill_end", true}},
                             {{"step", "tokens are chosen once, when the prompt is complete"}}, once)},
       {"then", choice<bool>("tokens: then", {{"drop", true}}, {}, once)},
       {"choose", refuse("tokens: choose", "all heads follow one policy (FastGen lets each choose)")},
       {"recovery", refuse("tokens: recovery", "all heads follow one policy (FastGen lets each choose)")}}));
  if (all && node.size() > 1) return error(node, "tokens: keep: all leaves nothing to score, budget or drop");
  if (!all && !node["score"]) return error(node, "tokens: expected keep: all or a score, found neither");
  if (!all) recipe_.tokens = dial;
  return {};
}

Status RecipeReader::read_token_budget(const YAML::Node& node, TokenDial& dial) const {
  const std::string path = "tokens: budget";
  LOWKEY_TRY(read_map(
      node, path,
      {{"heavy", number(path + ": heavy", 0, 1, dial.heavy)},
       {"recent", number(path + ": recent", 0, 1, dial.recent)},
       {"shape", choice<BudgetShape>(path + ": shape",
                                     {{"uniform", BudgetShape::kUniform}, {"pyramid", BudgetShape::kPyramid}},
                                     {}, dial.shape)},
       {"delta", number(path + ": delta", 1, 1000, dial.pyramid_delta)},
       {"total", refuse(path + ": total", "it is heavy + recent")},
       {"skip_layers", refuse(path + ": skip_layers", "every bank has a budget")}}));
  if (node["delta"] && dial.shape != BudgetShape::kPyramid)
    return error(node, "tokens: budget: delta is the slope of shape: pyramid");
  return {};
}

std::vector<RecipeReader::Key> RecipeReader::basis_keys(const std::string& path, SideText& side) const {
  constexpr std::string_view kPrompt = "bases come from a profile, which no prompt changes";
  return {{"basis", choice<BasisKind>(
                        path + ": basis",
                        {{"identity", BasisKind::kIdentity},
                         {"pca", BasisKind::kPca},
                         {"weighted", BasisKind::kWeighted},
                         {"trained", BasisKind::kTrained}},
                        {{"svd", kPrompt},
                         {"mse", "a map trained apart from its inverse is not calibrated (CSKV)"},
                         {"channels", "pruned channels are a basis of unit vectors, not calibrated (ThinK)"}},
                        side.basis)},
          {"keep", number(path + ": keep", 0.01, 1, side.keep)}};
}

Status RecipeReader::read_features(const YAML::Node& node) {
  const std::string path = "features";
  bool served = false;
  std::vector<Key> keys = basis_keys(path, both_);
  keys.push_back({"allocate", choice<bool>(path + ": allocate", {{"uniform", false}, {"per_head", true}}, {},
                                           per_head_)});
  keys.push_back({"site", choice<bool>(path + ": site", {{"post", true}},
                                       {{"pre", kPreRope},
                                        {"input", "the layer's input is not stored (CSKV)"},
                                        {"latent", "no served model has a latent of its own (MLA, CLLA)"}},
                                       served)});
  keys.push_back(
      {"source",
       choice<bool>(path + ": source", {{"profile", true}},
                    {{"sequence", "bases of a prompt are side tensors (ShadowKV, DecoQuant)"}}, served)});
  const auto side = [&](const char* name, SideText& text) {
    const std::string inner = fmt::format("{}: {}", path, name);
    keys.push_back({name, [this, inner, &text](const YAML::Node& value) {
                      return read_map(value, inner, basis_keys(inner, text));
                    }});
  };
  side("key", key_);
  side("value", value_);
  return read_map(node, path, keys);
}

std::vector<RecipeReader::Key> RecipeReader::code_keys(const std::string& path, SideText& side) const {
  const auto width = [this, path, &side](const YAML::Node& node) -> Status {
    const std::string text = node.IsScalar() ? node.Scalar() : "";
    int bits = text == "full" ? kFullWidth : text == "auto" ? kWidthAuto : 0;
    if (bits == 0 && (!node.IsScalar() || !YAML::convert<int>::decode(node, bits) || bits < 0 || bits > 8))
      return error(node,
                   fmt::format("{}: width: expected full, auto or 0 to 8, found {}", path, quoted(node)));
    side.width = bits;
    return {};
  };
  const auto group = [this, path, &side](const YAML::Node& node) -> Status {
    return integer(path + ": group", 1, 1024, side.group.emplace())(node);
  };
  return {{"quantizer",
           choice<Quantizer>(
               path + ": quantizer", {{"embedded", Quantizer::kEmbedded}, {"affine", Quantizer::kAffine}},
               {{"codebook", "codebooks need coupled channels, which RoPE turns (CQ, V6)"}}, side.quantizer)},
          {"width", width},
          {"axis", choice<ScaleAxis>(path + ": axis",
                                     {{"token", ScaleAxis::kToken}, {"channel", ScaleAxis::kChannel}}, {},
                                     side.axis)},
          {"group", group},
          {"scale",
           choice<bool>(path + ": scale", {{"profile", false}, {"online", true}}, {}, side.online_scale)}};
}

Status RecipeReader::read_bits(const YAML::Node& node) {
  const std::string path = "bits";
  std::vector<Key> keys = code_keys(path, both_);
  keys.push_back({"by_class", refuse(path + ": by_class", "a page has one token class (ZipCache)")});
  keys.push_back({"outliers", refuse(path + ": outliers", "outliers have no plane of their own (KVQuant)")});
  const auto side = [&](const char* name, SideText& text) {
    const std::string inner = fmt::format("{}: {}", path, name);
    keys.push_back({name, [this, inner, &text](const YAML::Node& value) {
                      return read_map(value, inner, code_keys(inner, text));
                    }});
  };
  side("key", key_);
  side("value", value_);
  return read_map(node, path, keys);
}

Status RecipeReader::read_hot(const YAML::Node& node) {
  int recent = 0;
  return read_map(node, "hot",
                  {{"sink", integer("hot: sink", 0, 4096, recipe_.sink_tokens)},
                   {"recent",
                    [&](const YAML::Node& value) -> Status {
                      LOWKEY_TRY(integer("hot: recent", 0, 1 << 20, recent)(value));
                      return recent == 0 ? Status() : refuse("hot: recent", kSlide)(value);
                    }},
                   {"flush", [this](const YAML::Node& value) -> Status {
                      if (value.IsScalar() && value.Scalar() == "slide")
                        return refuse("hot: flush", kSlide)(value);
                      return integer("hot: flush", 1, 1 << 16, recipe_.recent_block)(value);
                    }}});
}

Status RecipeReader::read_stream(const YAML::Node& node) {
  return read_map(node, "stream",
                  {{"levels", [this](const YAML::Node& value) { return read_levels(value); }},
                   {"spill", [this](const YAML::Node& value) { return read_spill(value); }},
                   {"prefill", choice<bool>("stream: prefill", {{"encoded", false}, {"exact", true}}, {},
                                            recipe_.exact_prefill)},
                   {"page_tokens", integer("stream: page_tokens", 16, 1024, recipe_.page_tokens)}});
}

Status RecipeReader::read_levels(const YAML::Node& node) {
  if (node.IsScalar()) {
    int count = 0;
    LOWKEY_TRY(integer("stream: levels", 2, kernels::kMaxLevels, count)(node));
    recipe_.levels.assign(count, 1.0);
    recipe_.levels_of_budget = true;
    return {};
  }
  std::vector<double> levels;
  if (node.IsSequence()) {
    for (const YAML::Node& cut : node)
      LOWKEY_TRY(number("stream: levels", 0.01, 1, levels.emplace_back())(cut));
  }
  if (levels.empty() || levels.size() > size_t{kernels::kMaxLevels} || levels.back() != 1 ||
      std::ranges::adjacent_find(levels, std::greater_equal<>()) != levels.end())
    return error(node,
                 fmt::format("stream: levels: expected up to {} ascending shares that end with 1, or the "
                             "number of levels of a budget, found {}",
                             kernels::kMaxLevels, quoted(node)));
  recipe_.levels = std::move(levels);
  return {};
}

Status RecipeReader::read_spill(const YAML::Node& node) {
  const std::string path = "stream: spill";
  if (node.IsScalar() && node.Scalar() == "all") return {};
  if (spilled_)
    return error(node, path + ": this is what another recipe's pages are spilled in: expected all");
  if (node.IsScalar()) {
    if (YAML::convert<int>::decode(node, recipe_.spill_levels) && recipe_.spill_levels >= 1 &&
        recipe_.spill_levels <= kernels::kMaxLevels)
      return {};
    return error(node, fmt::format("{}: expected all, a number of levels or {{recipe: FILE}}, found {}", path,
                                   quoted(node)));
  }
  return read_map(
      node, path,
      {{"recipe", [&](const YAML::Node& value) -> Status {
          if (!value.IsScalar() || value.Scalar().empty())
            return error(value, fmt::format("{}: recipe: expected a file, found {}", path, quoted(value)));
          auto spilled =
              read_spill_recipe(std::filesystem::path(where_).parent_path() / value.Scalar(), page_tokens_);
          if (!spilled) return error(value, fmt::format("{}: recipe: {}", path, spilled.error().message));
          recipe_.spilled = std::make_shared<Recipe>(*std::move(spilled));
          return {};
        }}});
}

}  // namespace lowkey::kvstore
