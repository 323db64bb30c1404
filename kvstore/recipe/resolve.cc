#include "kvstore/recipe/resolve.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <span>

#include "kvstore/dials/bits/group_widths.h"
#include "kvstore/dials/features/basis.h"
#include "kvstore/dials/heads/head_map.h"

namespace lowkey::kvstore {

using kernels::CacheShape;
using kernels::PageLayout;
using kernels::PageSpec;
using kernels::Quantizer;
using kernels::Side;
using kernels::VectorSpec;

namespace {

Error refused(const Recipe& recipe, std::string_view what) {
  return Error{Code::kUsage, fmt::format("recipe {}: {}", recipe.name, what), "recipe"};
}

// What the recipe expects of a profile that fits the model.
Status check_profile(const Recipe& recipe, const Profile& profile, const HeadMap& heads) {
  const auto differs = [&](const char* what, const auto& expected, const auto& found) {
    return refused(recipe, fmt::format("profile {}: {}: expected {}, found {}", recipe.profile_stem(), what,
                                       expected, found));
  };
  for (const SideDials* side : {&recipe.key, &recipe.value}) {
    if (side->basis != BasisKind::kIdentity && profile.basis != to_string(side->basis))
      return differs("basis", to_string(side->basis), profile.basis);
  }
  if (profile.join != heads.join) return differs("joined heads", heads.join, profile.join);
  if (!recipe.budget.empty() && profile.budget(recipe.budget) == nullptr) {
    std::string known;
    for (const Budget& budget : profile.budgets) known += (known.empty() ? "" : ", ") + budget.name;
    return differs("budget", recipe.budget, known.empty() ? "none" : known);
  }
  const bool cut = recipe.key.width == kWidthAuto || recipe.value.width == kWidthAuto;
  if (cut && recipe.levels.size() > 1) {
    const int levels = profile.budget(recipe.budget)->levels;
    if (std::ssize(recipe.levels) != levels)
      return differs(fmt::format("levels of budget {}", recipe.budget).c_str(), recipe.levels.size(), levels);
  }
  return {};
}

// The dials of one rank, composed vector by vector.
class Composer {
 public:
  Composer(const Recipe& recipe, const Profile* profile, const HeadMap& heads, int head_dim)
      : recipe_(recipe), profile_(profile), heads_(heads), input_dim_(heads.join * head_dim) {
    if (profile != nullptr && !recipe.budget.empty()) budget_ = profile->budget(recipe.budget);
  }

  // All vectors of `num_banks` banks from `first_bank` on.
  Result<PageSpec> pages(int first_bank, int num_banks) const {
    PageSpec spec{.recipe = recipe_.name,
                  .page_tokens = recipe_.page_tokens,
                  .sink_tokens = recipe_.sink_tokens,
                  .num_levels = static_cast<int>(recipe_.levels.size()),
                  .join = heads_.join};
    for (int bank = first_bank; bank < first_bank + num_banks; ++bank)
      for (const Side side : {Side::kKey, Side::kValue})
        for (int v = 0; v < heads_.num_vectors(); ++v) {
          LOWKEY_ASSIGN(vector, this->vector(bank, side, v));
          spec.vectors.push_back(std::move(vector));
        }
    return spec;
  }

 private:
  Result<VectorSpec> vector(int bank, Side side, int local) const {
    const SideDials& dials = side == Side::kKey ? recipe_.key : recipe_.value;
    const size_t index = profile_ == nullptr ? 0 : profile_->index(bank, side, heads_.first_vector + local);
    VectorSpec spec;
    spec.quantizer = dials.quantizer;
    if (dials.quantizer == Quantizer::kAffine) {
      spec.axis = dials.axis;
      spec.scale_span = dials.scale_span;
    }
    if (dials.quantizer == Quantizer::kEmbedded && dials.basis != BasisKind::kIdentity) {
      spec.norm = profile_->norm;
      spec.norm_edge = profile_->norm_edge;
    }
    const int groups = (input_dim_ + kernels::kGroupFeatures - 1) / kernels::kGroupFeatures;
    auto bits =
        make_group_widths(dials, dials, groups, recipe_.levels, budget_ ? &budget_->bits[index] : nullptr);
    if (!bits.ok()) return refused(recipe_, bits.error().message);
    spec.bits = *std::move(bits);
    const int dim = std::min(input_dim_, static_cast<int>(spec.bits.size()) * kernels::kGroupFeatures);
    set_basis(dials, profile_ == nullptr ? nullptr : &profile_->vectors[index], dim, spec);
    return spec;
  }

  const Recipe& recipe_;
  const Profile* profile_;
  const HeadMap& heads_;
  const int input_dim_;
  const Budget* budget_ = nullptr;
};

Result<ResolvedCache> resolve_rank(const Recipe& recipe, const Profile* profile, const ModelShape& model,
                                   int rank, int num_ranks) {
  ResolvedCache cache{.recipe = recipe};
  if (recipe.has_archive() && model.windows_or_caps)
    return Error{
        Code::kUsage,
        fmt::format("recipe {}: tokens are chosen, or encoded in blocks: expected a model without sliding "
                    "windows and soft caps of attention, found {}",
                    recipe.name, model.name),
        "recipe"};
  LOWKEY_ASSIGN(layers, make_layer_map(recipe.share, model.num_layers, model.kv_producer));
  LOWKEY_ASSIGN(heads, make_head_map(recipe.join, model.num_kv_heads, rank, num_ranks));
  cache.layers = std::move(layers);
  if (profile != nullptr) LOWKEY_TRY(check_profile(recipe, *profile, heads));
  const int num_banks = cache.layers.num_banks();
  const Composer composer(recipe, profile, heads, model.head_dim);
  CacheShape shape{num_banks, heads.num_heads, model.head_dim, model.dtype};
  if (!recipe.has_archive()) {
    LOWKEY_ASSIGN(spec, composer.pages(0, num_banks));
    LOWKEY_ASSIGN(pages, PageLayout::make(spec, shape));
    cache.pages = std::move(pages);
    return cache;
  }
  LOWKEY_ASSIGN(exact, PageLayout::make({.recipe = recipe.name, .page_tokens = recipe.page_tokens}, shape));
  cache.pages = std::move(exact);
  shape.num_banks = 1;
  for (int bank = 0; bank < num_banks; ++bank) {
    LOWKEY_ASSIGN(spec, composer.pages(bank, 1));
    LOWKEY_ASSIGN(pages, PageLayout::make(spec, shape));
    cache.archive.push_back(std::move(pages));
  }
  return cache;
}

}  // namespace

Result<ResolvedCache> resolve(const Recipe& recipe, const Profile* profile, const ModelShape& model, int rank,
                              int num_ranks, const Profile* spill_profile) {
  LOWKEY_CHECK(rank >= 0 && rank < num_ranks, "rank {} of {}", rank, num_ranks);
  LOWKEY_CHECK((profile != nullptr) == recipe.needs_profile(), "recipe {}: profile", recipe.name);
  // All ranks' layouts: they share slab sizes and the fingerprint.
  ResolvedCache own;
  std::vector<Hash128> fingerprints;
  std::vector<std::array<uint32_t, kernels::kMaxSlabs>> longest;  // of the pages, then of every archive
  for (int r = 0; r < num_ranks; ++r) {
    LOWKEY_ASSIGN(cache, resolve_rank(recipe, profile, model, r, num_ranks));
    longest.resize(1 + cache.archive.size());
    for (size_t i = 0; i < longest.size(); ++i) {
      const PageLayout& layout = i == 0 ? cache.pages : cache.archive[i - 1];
      fingerprints.push_back(layout.fingerprint());
      std::ranges::transform(longest[i], layout.slab_bytes, longest[i].begin(),
                             [](uint32_t a, uint32_t b) { return std::max(a, b); });
    }
    if (r == rank) own = std::move(cache);
  }
  own.pages.pad_slabs(longest[0]);
  for (size_t bank = 0; bank < own.archive.size(); ++bank) own.archive[bank].pad_slabs(longest[1 + bank]);
  own.fingerprint = hash128(std::as_bytes(std::span(fingerprints)));
  own.spill_levels = recipe.spill_levels == 0 ? own.pages.num_levels : recipe.spill_levels;
  if (!recipe.spilled) return own;
  LOWKEY_ASSIGN(spilled, resolve(*recipe.spilled, spill_profile, model, rank, num_ranks));
  if (spilled.fingerprint == own.fingerprint) return own;  // the same pages under another name
  // Whoever reads these pages from a store must know both forms.
  const std::array<Hash128, 2> both{own.fingerprint, spilled.fingerprint};
  own.fingerprint = hash128(std::as_bytes(std::span(both)));
  own.spilled = std::move(spilled.pages);
  return own;
}

std::optional<ArchiveSpec> ResolvedCache::archive_spec() const {
  if (archive.empty()) return std::nullopt;
  return ArchiveSpec{archive, recipe.tokens, std::max(recipe.recent_block, recipe.page_tokens)};
}

uint64_t ResolvedCache::bytes_for(uint64_t prompt, uint64_t generated) const {
  const std::optional<ArchiveSpec> spec = archive_spec();
  if (!spec) return pages.bytes_for_tokens(prompt + generated);
  return sequence_bytes(pages, &*spec, spec->after(static_cast<int>(prompt), static_cast<int>(generated)));
}

std::filesystem::path profile_file(const Recipe& recipe, const std::filesystem::path& explicit_file,
                                   const std::filesystem::path& model_dir) {
  if (!explicit_file.empty()) return explicit_file;
  // Of a GGUF file: beside it.
  std::error_code ec;
  const bool file = std::filesystem::is_regular_file(model_dir, ec);
  return (file ? model_dir.parent_path() : model_dir) / "profiles" /
         (recipe.profile_stem() + ".profile.safetensors");
}

Result<Profile> read_profile(const Recipe& recipe, const std::filesystem::path& explicit_file,
                             const std::filesystem::path& model_dir, const ModelShape& model) {
  const std::filesystem::path file = profile_file(recipe, explicit_file, model_dir);
  std::error_code ec;
  if (!std::filesystem::exists(file, ec))
    return Error{
        Code::kBadInput,
        fmt::format("recipe {}: expected its profile {} (made by lowkey calibrate, or named by --profile), "
                    "found none",
                    recipe.name, file.string()),
        {}};
  LOWKEY_ASSIGN(profile, Profile::read(file));
  LOWKEY_ASSIGN(layers, make_layer_map(LayerShare::kNone, model.num_layers, model.kv_producer));
  const auto differs = [&](const char* what, const auto& expected, const auto& found) {
    return Error{Code::kBadInput,
                 fmt::format("{}: made for another model than {}: {}: expected {}, found {}", file.string(),
                             model.name, what, expected, found),
                 {}};
  };
  if (profile.num_banks != layers.num_banks()) return differs("banks", layers.num_banks(), profile.num_banks);
  if (profile.num_kv_heads != model.num_kv_heads)
    return differs("KV heads", model.num_kv_heads, profile.num_kv_heads);
  if (profile.head_dim != model.head_dim) return differs("head_dim", model.head_dim, profile.head_dim);
  if (profile.model_fingerprint != model.fingerprint)
    return differs("fingerprint", model.fingerprint.hex(), profile.model_fingerprint.hex());
  return profile;
}

Result<std::optional<Profile>> read_spill_profile(const Recipe& recipe,
                                                  const std::filesystem::path& explicit_file,
                                                  const std::filesystem::path& model_dir,
                                                  const ModelShape& model) {
  if (!recipe.spilled || !recipe.spilled->needs_profile()) return std::optional<Profile>();
  const bool named = !recipe.needs_profile() || recipe.profile_stem() == recipe.spilled->profile_stem();
  LOWKEY_ASSIGN(profile, read_profile(*recipe.spilled, named ? explicit_file : "", model_dir, model));
  return std::optional(std::move(profile));
}

Result<ResolvedCache> resolve_files(const Recipe& recipe, const std::filesystem::path& profile_file,
                                    const std::filesystem::path& model_dir, const ModelShape& model, int rank,
                                    int num_ranks) {
  const bool spilled = recipe.spilled && recipe.spilled->needs_profile();
  if (!recipe.needs_profile() && !spilled && !profile_file.empty())
    return refused(recipe, "it takes no profile, so --profile must be left out");
  std::optional<Profile> own;
  if (recipe.needs_profile()) {
    LOWKEY_ASSIGN(profile, read_profile(recipe, profile_file, model_dir, model));
    own = std::move(profile);
  }
  LOWKEY_ASSIGN(other, read_spill_profile(recipe, profile_file, model_dir, model));
  return resolve(recipe, own ? &*own : nullptr, model, rank, num_ranks, other ? &*other : nullptr);
}

}  // namespace lowkey::kvstore
