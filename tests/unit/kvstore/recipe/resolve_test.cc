#include "kvstore/recipe/resolve.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numeric>

#include "tests/support/random_profile.h"
#include "tests/support/temp_folder.h"

namespace lowkey::kvstore {
namespace {

using kernels::kFullBits;
using kernels::PageLayout;
using kernels::Plane;
using kernels::Quantizer;
using kernels::Side;
using kernels::VectorLayout;
using testing::random_profile;

const std::filesystem::path kRecipes = LOWKEY_SOURCE_DIR "/recipes";

ModelShape shape(int layers, int heads, int dim) {
  return {.name = "m",
          .num_layers = layers,
          .num_kv_heads = heads,
          .head_dim = dim,
          .fingerprint = hash128(std::string("m"))};
}

Recipe recipe_of(const std::string& yaml) {
  auto recipe = parse_recipe("name: x\n" + yaml, "r.yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.error().message;
  return *recipe;
}

std::string refusal(const Recipe& recipe, const Profile* profile, const ModelShape& model, int ranks = 1) {
  const auto cache = resolve(recipe, profile, model, 0, ranks);
  return cache.ok() ? "accepted" : cache.error().message;
}

std::vector<std::vector<int>> bits_of(const PageLayout& layout, const VectorLayout& vector) {
  std::vector<std::vector<int>> bits((vector.dim + 15) / 16, std::vector<int>(layout.num_levels, 0));
  for (int p = 0; p < vector.num_planes; ++p) {
    const Plane& plane = layout.planes[vector.first_plane + p];
    bits[plane.feature / 16][plane.level] += plane.bits;
  }
  return bits;
}

TEST(Resolve, ExactAndQ8AreTheirPageSpecs) {
  const ModelShape model = shape(3, 4, 64);
  const kernels::CacheShape cache{.num_banks = 3, .num_kv_heads = 4, .head_dim = 64};
  EXPECT_EQ(resolve(Recipe{}, nullptr, model, 0, 1)->pages.fingerprint(),
            PageLayout::make({}, cache)->fingerprint());
  const Recipe q8 = read_recipe(kRecipes / "q8.yaml").value();
  EXPECT_EQ(resolve(q8, nullptr, model, 0, 1)->pages.fingerprint(),
            PageLayout::make(kernels::PageSpec::embedded("q8", 8, 4), cache)->fingerprint());
}

TEST(Resolve, EveryRecipeFileResolves) {
  ModelShape model = shape(4, 4, 64);
  model.kv_producer = {0, 0, 2, 2};  // so that `cla` is served
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kRecipes)) {
    ++files;
    const auto recipe = read_recipe(entry.path());
    ASSERT_TRUE(recipe.ok()) << recipe.error().message;
    EXPECT_EQ(recipe->name, entry.path().stem());
    std::optional<Profile> profile;
    if (recipe->needs_profile()) {
      const int levels = recipe->levels_of_budget ? static_cast<int>(recipe->levels.size()) : 1;
      profile = random_profile(model, recipe->join, 1, to_string(recipe->key.basis), levels);
      for (Budget& budget : profile->budgets) {
        if ((budget.name == "4x") == (recipe->key.width == kWidthAuto)) budget.name = recipe->budget;
      }
    }
    std::optional<Profile> spill_profile;
    if (recipe->spilled && recipe->spilled->needs_profile()) {
      spill_profile = random_profile(model, 1, 1, to_string(recipe->spilled->key.basis));
      spill_profile->budgets[0].name = recipe->spilled->budget;
    }
    const auto cache = resolve(*recipe, profile ? &*profile : nullptr, model, 0, 1,
                               spill_profile ? &*spill_profile : nullptr);
    ASSERT_TRUE(cache.ok()) << entry.path() << ": " << cache.error().message;
    EXPECT_EQ(cache->layers.num_banks(), 2);
    EXPECT_EQ(cache->archive.size(), recipe->has_archive() ? 2u : 0u);
    const uint64_t exact = resolve(Recipe{}, nullptr, model, 0, 1)->bytes_for(2048, 0);
    const bool smaller = recipe->name != "cla" && recipe->name.rfind("exact", 0) != 0;
    const uint64_t sink = recipe->spilled ? cache->pages.slab_bytes[cache->pages.sink_slab()] : 0;
    EXPECT_LT(cache->bytes_for(2048, 0), exact + sink + !smaller) << recipe->name;
  }
  EXPECT_GE(files, 16);
}

TEST(Resolve, WidthAutoIsTheProfilesBudget) {
  const ModelShape model = shape(2, 2, 64);
  Profile profile = random_profile(model);
  profile.norm = false;
  profile.norm_edge = 3.5f;
  profile.budgets[0].bits[3] = {{8}, {2}, {0}, {0}};  // bank 0, V of head 1
  const auto cache = resolve(recipe_of("features: {basis: trained}\nbits: {width: auto}\nbudget: 4x\n"),
                             &profile, model, 0, 1);
  ASSERT_TRUE(cache.ok()) << cache.error().message;
  const VectorLayout& first = cache->pages.vector(0, Side::kKey, 0);
  EXPECT_EQ(bits_of(cache->pages, first), (std::vector<std::vector<int>>{{8}, {4}, {4}, {2}}));
  const VectorLayout& cut = cache->pages.vector(0, Side::kValue, 1);
  EXPECT_EQ(cut.dim, 32) << "trailing groups without bits are not stored";
  EXPECT_EQ(cut.num_scalars, 0);
  EXPECT_EQ(cut.norm_edge, 3.5f);
  const VectorProfile& source = profile.vectors[3];
  const float* numbers = cache->pages.numbers_at(cut.encode);
  EXPECT_TRUE(std::equal(numbers, numbers + 32 * 64, source.encode.begin()));
  EXPECT_EQ(cut.decode, cut.encode) << "orthonormal: one copy";
  EXPECT_TRUE(std::equal(source.mean.begin(), source.mean.end(), cache->pages.numbers_at(cut.mean)));
  EXPECT_TRUE(
      std::equal(source.scale.begin(), source.scale.begin() + 32, cache->pages.numbers_at(cut.scale)));
}

TEST(Resolve, KeepWithoutQuantizerIsFullGroupsOrNothing) {
  const ModelShape model = shape(1, 2, 64);
  const Profile profile = random_profile(model);
  const auto uniform = resolve(recipe_of("features: {basis: trained, keep: 0.4}\n"), &profile, model, 0, 1);
  ASSERT_TRUE(uniform.ok()) << uniform.error().message;
  for (const VectorLayout& vector : uniform->pages.vectors) {
    EXPECT_EQ(vector.dim, 32) << "1.6 groups, rounded up";
    EXPECT_EQ(vector.scale, kernels::kNoNumbers) << "nothing is quantized";
  }
  const auto per_head = resolve(recipe_of("features: {basis: trained, keep: 0.5, allocate: per_head}\n"),
                                &profile, model, 0, 1);
  ASSERT_TRUE(per_head.ok()) << per_head.error().message;
  for (size_t v = 0; v < 4; ++v) {
    int kept = 0;
    for (const GroupBits& bits : profile.budgets[1].bits[v]) kept += bits[0] == kFullBits;
    EXPECT_EQ(per_head->pages.vectors[v].dim, 16 * kept);
  }
}

TEST(Resolve, FeaturesAndBitsCompose) {
  const ModelShape model = shape(1, 2, 64);
  const Profile profile = random_profile(model);
  const auto cache = resolve(
      recipe_of(
          "features: {basis: trained, keep: 0.5, allocate: per_head}\n"
          "bits: {quantizer: affine, width: 2, group: 16, key: {axis: channel}, value: {axis: token}}\n"),
      &profile, model, 0, 1);
  ASSERT_TRUE(cache.ok()) << cache.error().message;
  for (const VectorLayout& vector : cache->pages.vectors) {
    EXPECT_EQ(vector.quantizer, Quantizer::kAffine);
    EXPECT_EQ(vector.axis,
              vector.side == Side::kKey ? kernels::ScaleAxis::kChannel : kernels::ScaleAxis::kToken);
    for (const auto& group : bits_of(cache->pages, vector)) EXPECT_EQ(group, std::vector<int>{2});
  }
}

TEST(Resolve, TheLastGroupMayBeShort) {
  const ModelShape model = shape(1, 3, 40);
  Profile profile = random_profile(model);
  const auto uniform = resolve(recipe_of("features: {basis: trained, keep: 0.99}\n"), &profile, model, 0, 1);
  ASSERT_TRUE(uniform.ok()) << uniform.error().message;
  EXPECT_EQ(uniform->pages.vectors[0].dim, 40);
  profile.budgets[0].bits[0] = {{4}, {0}, {2}};
  profile.budgets[0].bits[1] = {{0}, {0}, {0}};
  const auto ours = resolve(recipe_of("features: {basis: trained}\nbits: {width: auto}\nbudget: 4x\n"),
                            &profile, model, 0, 1);
  ASSERT_TRUE(ours.ok()) << ours.error().message;
  EXPECT_EQ(bits_of(ours->pages, ours->pages.vectors[0]), (std::vector<std::vector<int>>{{4}, {0}, {2}}));
  EXPECT_EQ(ours->pages.vectors[1].num_planes, 0) << "rank 0 is allowed";
}

TEST(Resolve, LevelsCutEmbeddedCodesBetweenBitsAndOthersBetweenGroups) {
  const ModelShape model = shape(1, 1, 64);
  const auto embedded =
      resolve(recipe_of("bits: {width: 8}\nstream: {levels: [0.25, 0.5, 1]}\n"), nullptr, model, 0, 1);
  ASSERT_TRUE(embedded.ok()) << embedded.error().message;
  for (const auto& group : bits_of(embedded->pages, embedded->pages.vectors[0]))
    EXPECT_EQ(group, (std::vector<int>{2, 2, 4}));
  const Profile profile = random_profile(model);
  const std::string basis = "features: {basis: trained}\n";
  const auto full = resolve(recipe_of(basis + "stream: {levels: [0.25, 1]}\n"), &profile, model, 0, 1);
  ASSERT_TRUE(full.ok()) << full.error().message;
  EXPECT_EQ(bits_of(full->pages, full->pages.vectors[0]),
            (std::vector<std::vector<int>>{{16, 0}, {0, 16}, {0, 16}, {0, 16}}));
  EXPECT_NE(refusal(recipe_of("bits: {width: 4}\nstream: {levels: [0.3, 1]}\n"), nullptr, model)
                .find("cuts fall between bits: 0.3 of 4 bits is 1.20"),
            std::string::npos);
  EXPECT_NE(refusal(recipe_of(basis + "bits: {quantizer: affine, width: 2, axis: token, group: 16}\n"
                                      "stream: {levels: [0.3, 1]}\n"),
                    &profile, model)
                .find("cuts fall between groups: 0.3 of 4 groups is 1.20"),
            std::string::npos);
}

TEST(Resolve, BudgetsBringTheirLevels) {
  const ModelShape model = shape(1, 1, 64);
  const Profile profile = random_profile(model, 1, 1, "trained", 2);
  const std::string ours = "features: {basis: trained}\nbits: {width: auto}\nbudget: 4x\n";
  const auto two = resolve(recipe_of(ours + "stream: {levels: 2}\n"), &profile, model, 0, 1);
  ASSERT_TRUE(two.ok()) << two.error().message;
  EXPECT_EQ(bits_of(two->pages, two->pages.vectors[0]),
            (std::vector<std::vector<int>>{{8, 0}, {4, 0}, {0, 4}, {0, 2}}));
  const auto one = resolve(recipe_of(ours), &profile, model, 0, 1);
  ASSERT_TRUE(one.ok()) << one.error().message;
  EXPECT_EQ(bits_of(one->pages, one->pages.vectors[0]), (std::vector<std::vector<int>>{{8}, {4}, {4}, {2}}));
  EXPECT_NE(refusal(recipe_of(ours + "stream: {levels: 3}\n"), &profile, model)
                .find("levels of budget 4x: expected 3, found 2"),
            std::string::npos);
}

TEST(Resolve, RanksTakeTheirHeadsOfTheProfileAndSharePageSizes) {
  const ModelShape model = shape(2, 4, 64);
  const Profile profile = random_profile(model, 2);
  const Recipe recipe =
      recipe_of("heads: {join: 2}\nfeatures: {basis: trained}\nbits: {width: auto}\nbudget: 4x\n");
  const auto whole = resolve(recipe, &profile, model, 0, 1);
  ASSERT_TRUE(whole.ok()) << whole.error().message;
  std::vector<ResolvedCache> ranks;
  for (int rank = 0; rank < 2; ++rank) ranks.push_back(resolve(recipe, &profile, model, rank, 2).value());
  EXPECT_EQ(ranks[0].pages.slab_bytes, ranks[1].pages.slab_bytes);
  EXPECT_EQ(ranks[0].fingerprint, ranks[1].fingerprint);
  EXPECT_NE(ranks[0].fingerprint, whole->fingerprint);
  for (int rank = 0; rank < 2; ++rank)
    for (int bank = 0; bank < 2; ++bank)
      for (const Side side : {Side::kKey, Side::kValue}) {
        const PageLayout& layout = ranks[rank].pages;
        const VectorLayout& own = layout.vector(bank, side, 0);
        const VectorLayout& same = whole->pages.vector(bank, side, 2 * rank);
        EXPECT_EQ(bits_of(layout, own), bits_of(whole->pages, same));
        const float* a = layout.numbers_at(own.encode);
        EXPECT_TRUE(std::equal(a, a + size_t(own.dim) * own.input_dim, whole->pages.numbers_at(same.encode)));
      }
}

TEST(Resolve, RaggedRanksArePaddedToTheLongest) {
  const ModelShape model = shape(1, 2, 64);
  Profile profile = random_profile(model);
  for (const size_t v : {0, 2}) profile.budgets[0].bits[v] = {{2}, {0}, {0}, {0}};  // head 0
  for (const size_t v : {1, 3}) profile.budgets[0].bits[v] = {{8}, {8}, {8}, {8}};  // head 1
  const Recipe recipe = recipe_of("features: {basis: trained}\nbits: {width: auto}\nbudget: 4x\n");
  const auto first = resolve(recipe, &profile, model, 0, 2), second = resolve(recipe, &profile, model, 1, 2);
  EXPECT_EQ(first->pages.slab_bytes[0], second->pages.slab_bytes[0]);
  EXPECT_GT(second->pages.slab_bytes[0], 2u * 32 * 64);
}

TEST(Resolve, SharedLayersHaveOneBank) {
  ModelShape model = shape(5, 2, 64);
  model.kv_producer = {0, 1, 1, 3, 1};
  const Recipe cla = read_recipe(kRecipes / "cla.yaml").value();
  const auto cache = resolve(cla, nullptr, model, 0, 1);
  ASSERT_TRUE(cache.ok()) << cache.error().message;
  EXPECT_EQ(cache->layers.bank_of_layer, (std::vector<int>{0, 1, 1, 2, 1}));
  EXPECT_EQ(cache->layers.producer_of_bank, (std::vector<int>{0, 1, 3}));
  EXPECT_EQ(cache->pages.num_banks, 3);
  EXPECT_EQ(resolve(Recipe{}, nullptr, model, 0, 1)->pages.num_banks, 3) << "there is nothing else to store";
  EXPECT_NE(refusal(cla, nullptr, shape(5, 2, 64)).find("config.json has no kv_producer"), std::string::npos);
  model.kv_producer = {0, 0, 1, 3, 1};
  EXPECT_NE(refusal(cla, nullptr, model).find("kv_producer: layer 2: expected itself or an earlier layer"),
            std::string::npos);
}

TEST(Resolve, WhatTheModelCannotIsRefusedWithTheRule) {
  const ModelShape model = shape(1, 4, 64);
  const Profile profile = random_profile(model, 1, 1, "pca");
  const Recipe ours = recipe_of("features: {basis: trained}\nbits: {width: auto}\nbudget: 9x\n");
  EXPECT_EQ(refusal(ours, &profile, model), "recipe x: profile x: basis: expected trained, found pca");
  const Profile trained = random_profile(model);
  EXPECT_EQ(refusal(ours, &trained, model), "recipe x: profile x: budget: expected 9x, found 4x, keep-0.50");
  EXPECT_EQ(refusal(recipe_of("heads: {join: 2}\nfeatures: {basis: trained}\n"), &trained, model),
            "recipe x: profile x: joined heads: expected 2, found 1");
  EXPECT_EQ(refusal(recipe_of("heads: {join: 4}\n"), nullptr, model, 2),
            "heads: join: expected a divisor of the 2 KV heads of a rank, found 4 (a stored vector cannot "
            "span ranks)");
  EXPECT_EQ(refusal(Recipe{}, nullptr, model, 3), "3 ranks must divide the model's 4 KV heads");
}

// The paper's own count (arXiv:2411.18077, table 3: LLaMA-2-7B, 4096 + 512 tokens): codes, minima and steps.
TEST(Resolve, MiniKvHasThePapersBytes) {
  const Recipe minikv = read_recipe(kRecipes / "minikv.yaml").value();
  const auto cache = resolve(minikv, nullptr, shape(32, 32, 128), 0, 1);
  ASSERT_TRUE(cache.ok()) << cache.error().message;
  uint64_t codes = 0;
  for (const PageLayout& bank : cache->archive) codes += (2048 + 512) / 32 * uint64_t{bank.slab_bytes[0]};
  EXPECT_EQ(codes, 335'544'320u) << "0.335 GB";
  EXPECT_EQ(cache->pages.bf16_bytes_for_tokens(4096 + 512), 2'415'919'104u) << "2.42 GB";
  // Everything counted: the tail that every sequence has, and headers.
  const uint64_t all = cache->bytes_for(4096, 512);
  EXPECT_GE(all, codes);
  EXPECT_LE(all, codes + 32 * 80 * uint64_t{kernels::kPageHeaderBytes} + cache->pages.tail_bytes);
  EXPECT_GE(cache->bytes_for(4096, 512 + 127), all + uint64_t{cache->pages.slab_bytes[0]} * 3);
  EXPECT_LT(cache->bytes_for(4096, 512 + 128), cache->bytes_for(4096, 512 + 127)) << "a block was encoded";
}

TEST(Resolve, TheProfileLiesBesideTheModelUnlessNamed) {
  testing::TempFolder folder;
  const ModelShape model = shape(2, 2, 64);
  const Recipe recipe =
      recipe_of("profile: p\nfeatures: {basis: trained}\nbits: {width: auto}\nbudget: 4x\n");
  const auto absent = resolve_files(recipe, {}, folder.path(), model, 0, 1);
  ASSERT_FALSE(absent.ok());
  EXPECT_NE(absent.error().message.find("profiles/p.profile.safetensors (made by lowkey calibrate"),
            std::string::npos)
      << absent.error().message;
  std::filesystem::create_directory(folder.path() / "profiles");
  const auto file = folder.path() / "profiles" / "p.profile.safetensors";
  const Profile profile = random_profile(model);
  ASSERT_TRUE(profile.write(file).ok());
  EXPECT_EQ(resolve_files(recipe, {}, folder.path(), model, 0, 1)->fingerprint,
            resolve(recipe, &profile, model, 0, 1)->fingerprint);
  std::ofstream(folder.path() / "model.gguf") << "GGUF";
  EXPECT_EQ(profile_file(recipe, {}, folder.path() / "model.gguf"), file) << "beside a model that is a file";
  EXPECT_TRUE(resolve_files(recipe, file, "/nowhere", model, 0, 1).ok());
  ModelShape other = model;
  other.fingerprint = hash128(std::string("other"));
  EXPECT_NE(
      resolve_files(recipe, {}, folder.path(), other, 0, 1).error().message.find("fingerprint: expected"),
      std::string::npos);
  EXPECT_NE(resolve_files(recipe, {}, folder.path(), shape(3, 2, 64), 0, 1)
                .error()
                .message.find("banks: expected 3"),
            std::string::npos);
  EXPECT_NE(
      resolve_files(Recipe{}, file, folder.path(), model, 0, 1).error().message.find("takes no profile"),
      std::string::npos);
}

TEST(Resolve, SpilledPagesHaveALayoutOfTheirOwn) {
  const ModelShape model = shape(2, 4, 64);
  Recipe recipe;
  const auto plain = resolve(recipe, nullptr, model, 0, 1);
  EXPECT_FALSE(plain->spilled.has_value());
  EXPECT_EQ(plain->spill_levels, 1);
  recipe.spilled =
      std::make_shared<Recipe>(recipe_of("features: {basis: trained}\nbits: {width: auto}\nbudget: 4x\n"));
  const Profile profile = random_profile(model);
  const auto cache = resolve(recipe, nullptr, model, 0, 1, &profile);
  ASSERT_TRUE(cache.ok()) << cache.error().message;
  ASSERT_TRUE(cache->spilled.has_value());
  EXPECT_EQ(cache->pages.fingerprint(), plain->pages.fingerprint());
  EXPECT_LT(cache->spilled->slab_bytes[0], cache->pages.slab_bytes[0] / 2);
  EXPECT_NE(cache->fingerprint, plain->fingerprint) << "other bytes under other identities";
  EXPECT_EQ(resolve(recipe, nullptr, model, 1, 2, &profile)->fingerprint,
            resolve(recipe, nullptr, model, 0, 2, &profile)->fingerprint);

  recipe.spilled = std::make_shared<Recipe>(Recipe{.name = "the same"});
  const auto same = resolve(recipe, nullptr, model, 0, 1);
  EXPECT_FALSE(same->spilled.has_value());
  EXPECT_EQ(same->fingerprint, plain->fingerprint);

  const Recipe levels = recipe_of("bits: {width: 8}\nstream: {levels: [0.25, 0.5, 1], spill: 2}\n");
  const auto some = resolve(levels, nullptr, model, 0, 1);
  EXPECT_EQ(some->spill_levels, 2);
  EXPECT_EQ(some->fingerprint,
            resolve(recipe_of("bits: {width: 8}\nstream: {levels: [0.25, 0.5, 1]}\n"), nullptr, model, 0, 1)
                ->fingerprint)
      << "what is stored of a page is the same";
}

}  // namespace
}  // namespace lowkey::kvstore
