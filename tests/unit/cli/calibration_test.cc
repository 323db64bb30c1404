// `lowkey calibrate` on a small random model: the whole way from text to a profile that a cache is resolved
// from.
#include "cli/calibration.h"

#include <gtest/gtest.h>

#include <fstream>

#include "cli/kl_meter.h"
#include "cli/model_shape.h"
#include "kvstore/recipe/resolve.h"
#include "tests/support/temp_folder.h"
#include "worker/model/random_model.h"

namespace lowkey::cli {
namespace {

namespace fs = std::filesystem;

// Small enough that a whole calibration takes seconds on a busy machine.
fs::path write_model(const fs::path& folder) {
  const auto shape =
      worker::parse_shape("layers=2,hidden=64,heads=4,kv_heads=2,head_dim=32,ffn=64,positions=256");
  EXPECT_TRUE(shape.ok());
  EXPECT_TRUE(worker::write_random_model(*shape, 1, folder / "model").ok());
  return folder / "model";
}

// 4,096 words of a few kinds, with an order that a model can partly guess.
fs::path write_text(const fs::path& folder) {
  const char* words[] = {"the", "old", "man", "went", "to", "sea", "and", "said", "nothing", "more"};
  std::ofstream out(folder / "text.txt");
  for (uint32_t i = 0, x = 1; i < 8192; ++i) {
    x = x * 1664525 + 1013904223;
    out << words[(x >> 24) % 10] << (i % 17 == 16 ? ".\n" : " ");
  }
  return folder / "text.txt";
}

fs::path write_recipe(const fs::path& folder, const std::string& yaml) {
  std::ofstream(folder / "recipe.yaml") << yaml;
  return folder / "recipe.yaml";
}

std::string bytes_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(Calibration, ServesItsBudgetAndIsTheSameTwice) {
  const testing::TempFolder folder;
  const fs::path model = write_model(folder.path());
  const CalibrationOptions options{.model_dir = model,
                                   .text = write_text(folder.path()),
                                   .budgets = {{4}, {4.5, 2}},
                                   .tokens = 2048,
                                   .threads = 2,
                                   .loss_windows = 1};
  const auto first = calibrate(options);
  ASSERT_TRUE(first.ok()) << first.error().message;
  ASSERT_TRUE(first->profile.write(folder.path() / "first").ok());
  EXPECT_EQ(first->profile.basis, "weighted");
  ASSERT_EQ(first->budgets.size(), 3u);
  EXPECT_GE(first->budgets[0].ratio, 4.0);
  EXPECT_LT(first->budgets[0].ratio, 4.2);
  EXPECT_EQ(first->budgets[1].name, "4.5x-2x:1");
  EXPECT_EQ(first->budgets[2].name, "4.5x-2x");
  EXPECT_NEAR(first->budgets[1].ratio, 4.5, 0.2);
  EXPECT_NEAR(first->budgets[2].ratio, 2, 0.1);
  EXPECT_GT(first->budgets[1].loss, first->budgets[2].loss);

  const auto profile = kvstore::Profile::read(folder.path() / "first");
  ASSERT_TRUE(profile.ok()) << profile.error().message;
  const auto recipe = kvstore::read_recipe(write_recipe(
      folder.path(),
      "name: ours\nbudget: 4x\nfeatures: {basis: weighted}\nbits: {quantizer: embedded, width: auto}\n"
      "hot: {sink: 4}\n"));
  ASSERT_TRUE(recipe.ok()) << recipe.error().message;
  const auto config = worker::ModelConfig::read(model);
  const auto cache = kvstore::resolve(
      *recipe, &*profile, model_shape(*config, profile->model_fingerprint, kernels::DType::kBf16), 0, 1);
  ASSERT_TRUE(cache.ok()) << cache.error().message;
  const double ratio = static_cast<double>(cache->pages.bf16_bytes_for_tokens(2048)) /
                       static_cast<double>(cache->pages.bytes_for_tokens(2048));
  EXPECT_NEAR(ratio, first->budgets[0].ratio, 1e-6) << "the recipe's pages are those that were budgeted";
  const auto levels = kvstore::read_recipe(write_recipe(
      folder.path(),
      "name: ours\nbudget: 4.5x-2x\nfeatures: {basis: weighted}\nbits: {quantizer: embedded, width: auto}\n"
      "hot: {sink: 4}\nstream: {levels: 2}\n"));
  ASSERT_TRUE(levels.ok()) << levels.error().message;
  const auto two = kvstore::resolve(
      *levels, &*profile, model_shape(*config, profile->model_fingerprint, kernels::DType::kBf16), 0, 1);
  ASSERT_TRUE(two.ok()) << two.error().message;
  for (int level = 1; level <= 2; ++level)
    EXPECT_NEAR(static_cast<double>(two->pages.bf16_bytes_for_tokens(2048)) /
                    static_cast<double>(two->pages.bytes_for_tokens(2048, level)),
                first->budgets[level].ratio, 1e-6);

  const auto second = calibrate(options);
  ASSERT_TRUE(second.ok());
  ASSERT_TRUE(second->profile.write(folder.path() / "second").ok());
  EXPECT_EQ(bytes_of(folder.path() / "first"), bytes_of(folder.path() / "second"));
}

TEST(Calibration, RanksFollowTheRecipe) {
  const testing::TempFolder folder;
  const fs::path model = write_model(folder.path());
  const auto recipe =
      write_recipe(folder.path(),
                   "name: ranks\nheads: {join: 2}\nfeatures: {basis: pca, keep: 0.5, allocate: per_head}\n");
  const auto result = calibrate({.model_dir = model,
                                 .text = write_text(folder.path()),
                                 .recipe = recipe,
                                 .budgets = {{0.5}, {0.75}},
                                 .tokens = 1024,
                                 .threads = 2,
                                 .loss_windows = 1});
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->profile.basis, "pca");
  EXPECT_EQ(result->profile.join, 2);
  ASSERT_EQ(result->profile.budgets.size(), 2u);
  const kvstore::Budget* half = result->profile.budget("keep-0.50");
  const kvstore::Budget* more = result->profile.budget("keep-0.75");
  ASSERT_TRUE(half && more);
  size_t kept = 0, groups = 0;
  for (size_t v = 0; v < half->bits.size(); ++v)
    for (size_t g = 0; g < half->bits[v].size(); ++g, ++groups) {
      kept += half->bits[v][g][0] == kernels::kFullBits;
      EXPECT_LE(half->bits[v][g][0], more->bits[v][g][0]) << "budgets are nested";
    }
  EXPECT_EQ(2 * kept, groups);
}

TEST(Calibration, SeesTheKeysOfRoundedWeights) {
  const testing::TempFolder folder;
  CalibrationOptions options{
      .model_dir = write_model(folder.path()),
      .text = write_text(folder.path()),
      .recipe = write_recipe(folder.path(), "name: r\nfeatures: {basis: pca, keep: 0.5}\n"),
      .tokens = 1024,
      .threads = 2};
  const auto own = calibrate(options);
  options.weights = "int4";
  const auto rounded = calibrate(options);
  ASSERT_TRUE(own.ok() && rounded.ok());
  EXPECT_EQ(own->profile.model_fingerprint, rounded->profile.model_fingerprint);
  EXPECT_NE(own->profile.vectors[0].mean, rounded->profile.vectors[0].mean);
  EXPECT_EQ(own->profile.origin + ", weights in int4", rounded->profile.origin);
  options.train = true;
  options.recipe.clear();
  const auto trained = calibrate(options);
  ASSERT_FALSE(trained.ok());
  EXPECT_NE(trained.error().message.find("--weights int4"), std::string::npos) << trained.error().message;
}

TEST(Calibration, RefusesInOneLine) {
  const testing::TempFolder folder;
  const fs::path text = write_text(folder.path()), model = write_model(folder.path());
  const auto error = [&](const CalibrationOptions& options) {
    const auto result = calibrate(options);
    EXPECT_FALSE(result.ok());
    return result.error();
  };
  EXPECT_EQ(error({.model_dir = model, .text = folder.path() / "absent.txt"}).code, Code::kBadInput);
  EXPECT_EQ(error({.model_dir = folder.path() / "absent", .text = text}).code, Code::kBadInput);
  const auto exact = write_recipe(folder.path(), "name: exact\n");
  EXPECT_EQ(error({.model_dir = model, .text = text, .recipe = exact}).code, Code::kUsage);
  EXPECT_EQ(error({.model_dir = model, .text = text, .budgets = {{100}}}).code, Code::kUsage);
  const auto ranks = write_recipe(
      folder.path(),
      "name: r\nprofile: p\nbudget: keep-0.50\nfeatures: {basis: pca, keep: 0.5, allocate: per_head}\n");
  EXPECT_EQ(error({.model_dir = model, .text = text, .recipe = ranks, .budgets = {{4}}}).code, Code::kUsage);
  const auto trained = write_recipe(
      folder.path(), "name: t\nfeatures: {basis: trained}\nbits: {quantizer: embedded, width: 4}\n");
  EXPECT_NE(error({.model_dir = model, .text = text, .recipe = trained}).message.find("--train"),
            std::string::npos);
}

TEST(KlMeter, ExactLosesNothingAndFewerBitsLoseMore) {
  const testing::TempFolder folder;
  const fs::path model = write_model(folder.path());
  std::vector<std::vector<int32_t>> windows(1);
  for (int i = 0; i < 256; ++i) windows[0].push_back(4 + (i * i) % 97);
  auto runner = worker::WindowRunner::load(model, {.threads = 2});
  ASSERT_TRUE(runner.ok()) << runner.error().message;
  const auto meter = KlMeter::make(**runner, windows);
  ASSERT_TRUE(meter.ok());
  const auto shape = (*runner)->config().cache_shape(1, kernels::DType::kBf16);
  const auto loss = [&](const kernels::PageSpec& spec) {
    return *(*meter)->measure(*kernels::PageLayout::make(spec, shape));
  };
  EXPECT_NEAR(loss({}), 0, 1e-6);
  const double eight = loss(kernels::PageSpec::embedded("8", 8, 4));
  const double four = loss(kernels::PageSpec::embedded("4", 4, 4));
  const double two = loss(kernels::PageSpec::embedded("2", 2, 4));
  EXPECT_LT(eight, four);
  EXPECT_LT(four, two);
}

}  // namespace
}  // namespace lowkey::cli
