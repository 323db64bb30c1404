#include "cli/inspect.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <sstream>

#include "cli/inspect_report.h"
#include "kvstore/recipe/resolve.h"
#include "tests/support/random_profile.h"
#include "tests/support/temp_folder.h"

namespace lowkey::testing {
namespace {

const std::filesystem::path kSource = LOWKEY_SOURCE_DIR;

// Exit code as main() would return it.
int run(const std::string& arguments) {
  CLI::App app("", "lowkey");
  int exit_code = 0;
  cli::add_inspect_command(app, exit_code);
  try {
    app.parse("inspect " + arguments);
  } catch (const CLI::ParseError& error) {
    std::ostringstream sink;
    return app.exit(error, sink, sink) == 0 ? 0 : 2;
  }
  return exit_code;
}

TEST(Inspect, Q8IsTheRecipeFile) {
  const auto file = kvstore::read_recipe(kSource / "recipes" / "q8.yaml");
  ASSERT_TRUE(file.ok()) << file.error().message;
  const kvstore::ModelShape shape{.num_layers = 2, .num_kv_heads = 2, .head_dim = 64};
  EXPECT_EQ(kvstore::resolve(*file, nullptr, shape, 0, 1)->pages.fingerprint(),
            kvstore::resolve(cli::q8_recipe(), nullptr, shape, 0, 1)->pages.fingerprint());
}

kvstore::Recipe recipe_file(const std::string& name) {
  auto recipe = kvstore::read_recipe(kSource / "recipes" / (name + ".yaml"));
  EXPECT_TRUE(recipe.ok()) << recipe.error().message;
  return *recipe;
}

#define EXPECT_HAS(text, part) \
  EXPECT_NE((text).find(part), std::string::npos) << (part) << " is not in\n" << (text)

TEST(Inspect, ReportOfTheDemoModel) {
  const auto report =
      cli::inspect_report(kSource / "deploy" / "demo-model", {.tp = 2, .kv_bytes = 1 << 20}, {});
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_HAS(*report, "demo-model: Llama type, 6 layers, hidden 256, 4 query and 2 KV heads of 64");
  EXPECT_HAS(*report, "5475584 parameters in 1 file");
  EXPECT_HAS(*report, "512 KiB on each of 2 ranks");
  EXPECT_EQ(report->find("Recipe"), std::string::npos) << "only named recipes are described";
}

TEST(Inspect, TokensThatFitIsTheLargest) {
  const kvstore::ModelShape shape{.num_layers = 3, .num_kv_heads = 2, .head_dim = 64};
  const auto cache = kvstore::resolve(cli::q8_recipe(), nullptr, shape, 0, 1);
  ASSERT_TRUE(cache.ok());
  for (const uint64_t bytes : {0ull, 1ull, 100'000ull, 12'345'678ull}) {
    const uint64_t tokens = cli::tokens_that_fit(*cache, bytes);
    if (tokens > 0) {
      EXPECT_LE(cache->pages.bytes_for_tokens(tokens), bytes);
    }
    EXPECT_GT(cache->pages.bytes_for_tokens(tokens + 1), bytes);
  }
}

TEST(Inspect, ARecipeIsDescribedHeadByHead) {
  const kvstore::ModelShape model{.num_layers = 2, .num_kv_heads = 2, .head_dim = 64};
  kvstore::Profile profile = random_profile(model);
  profile.basis = "weighted";
  profile.budgets[0].name = "6x";
  profile.budgets[0].bits[1] = {{8}, {2}, {0}, {0}};  // layer 0, K of head 1
  std::vector<kvstore::ResolvedCache> ranks;
  for (int rank = 0; rank < 2; ++rank)
    ranks.push_back(kvstore::resolve(recipe_file("lowkey-6x"), &profile, model, rank, 2).value());
  const std::string text = cli::describe_recipe(ranks, "p.safetensors: by hand");
  EXPECT_HAS(text, "Recipe lowkey-6x\n");
  EXPECT_HAS(text, "  features  weighted basis\n");
  EXPECT_HAS(text, "  bits      bits by budget 6x, embedded codes, a norm per token\n");
  EXPECT_HAS(text, "  hot       4 sink tokens and the incomplete page\n");
  EXPECT_HAS(text, "  profile   p.safetensors: by hand\n");
  EXPECT_HAS(text, "      0      0   64 of 64        8442   64 of 64        4284\n");
  EXPECT_HAS(text, "      0      1   32 of 64        82..   64 of 64        2844\n");
  // Both ranks' bytes, on the one hand; on the other a rank's ratio, which is everybody's.
  EXPECT_HAS(text, fmt::format("  1       {:>14.1f}", 2 * ranks[0].pages.bytes_per_token()));
  EXPECT_HAS(text, fmt::format("{:>14.2f}\n", double(ranks[0].pages.bf16_bytes_for_tokens(32768)) /
                                                  double(ranks[0].pages.bytes_for_tokens(32768))));
}

TEST(Inspect, LevelsAndEqualHeadsAreTold) {
  const kvstore::ModelShape model{.num_layers = 2, .num_kv_heads = 4, .head_dim = 64};
  const auto recipe = kvstore::parse_recipe(
      "name: cut\nheads: {join: 2}\nbits: {width: 8}\nstream: {levels: [0.25, 0.5, 1]}\n", "cut.yaml");
  const std::vector<kvstore::ResolvedCache> ranks = {kvstore::resolve(*recipe, nullptr, model, 0, 1).value()};
  const std::string text = cli::describe_recipe(ranks, "");
  EXPECT_HAS(text, "  heads     2 joined into one stored vector\n");
  EXPECT_HAS(text, "  1 to 3  ");
  EXPECT_HAS(text, "    all    all   128 of 128      22222222+22222222+44444444");
  EXPECT_EQ(text.find("profile"), std::string::npos);
  EXPECT_EQ(cli::smallest_piece(ranks[0]), 2u * 128 * 32 / 4)
      << "2 vectors of 128 features, 32 tokens, 2 bits";
}

TEST(Inspect, NoLineIsWiderThan100Columns) {
  const kvstore::ModelShape model{
      .num_layers = 4, .num_kv_heads = 4, .head_dim = 64, .kv_producer = {0, 0, 2, 2}};
  for (const auto& entry : std::filesystem::directory_iterator(kSource / "recipes")) {
    const kvstore::Recipe recipe = *kvstore::read_recipe(entry.path());
    std::optional<kvstore::Profile> profile;
    if (recipe.needs_profile()) {
      const int levels = recipe.levels_of_budget ? static_cast<int>(recipe.levels.size()) : 1;
      profile = random_profile(model, recipe.join, 1, to_string(recipe.key.basis), levels);
      profile->budgets[recipe.key.width == kvstore::kWidthAuto ? 0 : 1].name = recipe.budget;
    }
    std::optional<kvstore::Profile> spilled;
    if (recipe.spilled) {
      spilled = random_profile(model, 1, 1, to_string(recipe.spilled->key.basis));
      spilled->budgets[0].name = recipe.spilled->budget;
    }
    const std::vector<kvstore::ResolvedCache> ranks = {
        kvstore::resolve(recipe, profile ? &*profile : nullptr, model, 0, 1, spilled ? &*spilled : nullptr)
            .value()};
    const std::string text = cli::describe_recipe(ranks, "p");
    EXPECT_EQ(text.find("\n  spill ") != std::string::npos, recipe.spilled != nullptr) << text;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
      EXPECT_LE(line.size(), 100u) << recipe.name << ": " << line;
  }
}

TEST(Inspect, ExitCodes) {
  TempFolder folder;
  const std::string dir = folder.path().string();
  EXPECT_EQ(run(""), 2);
  EXPECT_EQ(run("--random tiny"), 2);
  EXPECT_EQ(run("--random 7B --out " + dir + "/m"), 2);
  EXPECT_EQ(run("--random tiny --out " + dir + "/m --seed 3"), 0);
  EXPECT_EQ(run("--random tiny --out " + dir + "/m"), 2) << "not empty";
  EXPECT_EQ(run(dir + "/m"), 0);
  EXPECT_EQ(run(dir + "/m --tp 3"), 2);
  EXPECT_EQ(run(dir + "/m --kv-bytes many"), 2);
  EXPECT_EQ(run(dir + "/m --dtype fp16"), 2);
  EXPECT_EQ(run(dir + "/m --recipe " + dir + "/absent.yaml"), 3);
  const std::string recipes = (kSource / "recipes").string();
  EXPECT_EQ(run(dir + "/m --recipe " + recipes + "/minikv.yaml"), 0);
  EXPECT_EQ(run(dir + "/m --recipe " + recipes + "/cla.yaml"), 2) << "a model that shares nothing";
  EXPECT_EQ(run(dir + "/m --recipe " + recipes + "/lowkey-4x.yaml"), 3) << "no profile";
  EXPECT_EQ(run(dir + "/m --recipe " + recipes + "/lowkey-4x.yaml --profile " + dir + "/m/model.safetensors"),
            3);
  EXPECT_EQ(run(dir + "/absent"), 3);
  std::filesystem::resize_file(folder.path() / "m" / "model.safetensors", 100);
  EXPECT_EQ(run(dir + "/m"), 3);
}

}  // namespace
}  // namespace lowkey::testing
