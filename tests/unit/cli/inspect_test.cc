#include "cli/inspect.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <sstream>

#include "cli/inspect_report.h"
#include "kvstore/recipe/resolve.h"
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

TEST(Inspect, ReportOfTheDemoModel) {
  const std::vector<kvstore::Recipe> recipes = {{}, cli::q8_recipe()};
  const auto report =
      cli::inspect_report(kSource / "deploy" / "demo-model", {.tp = 2, .kv_bytes = 1 << 20}, recipes);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_NE(report->find("demo-model: Llama type, 6 layers, hidden 256, 4 query and 2 KV heads of 64"),
            std::string::npos)
      << *report;
  EXPECT_NE(report->find("5475584 parameters in 1 file"), std::string::npos) << *report;
  EXPECT_NE(report->find("512 KiB on each of 2 ranks"), std::string::npos) << *report;
}

TEST(Inspect, TokensThatFitIsTheLargest) {
  const kernels::CacheShape shape{.num_banks = 3, .num_kv_heads = 2, .head_dim = 64};
  const auto layout = kernels::PageLayout::make(kernels::PageSpec::embedded("q8", 8, 4), shape);
  ASSERT_TRUE(layout.ok());
  for (const uint64_t bytes : {0ull, 1ull, 100'000ull, 12'345'678ull}) {
    const uint64_t tokens = cli::tokens_that_fit(*layout, bytes);
    if (tokens > 0) {
      EXPECT_LE(layout->bytes_for_tokens(tokens), bytes);
    }
    EXPECT_GT(layout->bytes_for_tokens(tokens + 1), bytes);
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
  EXPECT_EQ(run(dir + "/absent"), 3);
  std::filesystem::resize_file(folder.path() / "m" / "model.safetensors", 100);
  EXPECT_EQ(run(dir + "/m"), 3);
}

}  // namespace
}  // namespace lowkey::testing
