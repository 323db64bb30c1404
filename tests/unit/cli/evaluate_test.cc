#include "cli/evaluate.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <fstream>
#include <set>
#include <sstream>

#include "cli/evaluate_report.h"
#include "cli/evaluate_run.h"
#include "cli/recall_task.h"
#include "tests/support/temp_folder.h"

namespace lowkey::testing {
namespace {

namespace fs = std::filesystem;

const fs::path kSource = LOWKEY_SOURCE_DIR;
const fs::path kDemo = kSource / "deploy" / "demo-model";

// A few kilobytes of English that is in every checkout.
fs::path some_text(const fs::path& folder) {
  std::ofstream out(folder / "text.txt");
  for (const char* name : {"README.md", "docs/architecture.md"}) out << std::ifstream(kSource / name).rdbuf();
  return folder / "text.txt";
}

fs::path write_recipe(const fs::path& folder, const std::string& name, const std::string& text) {
  std::ofstream(folder / (name + ".yaml")) << "name: " << name << "\n" << text;
  return folder / (name + ".yaml");
}

cli::EvaluateRow some_row(const std::string& name, double ratio, double kl) {
  return {.recipe = name,
          .ratio = ratio,
          .bits_per_element = 4.5,
          .kl = kl,
          .top1 = 0.98,
          .ppl = 12.5,
          .ppl_exact = 12.25,
          .recall_first = 1,
          .recall_later = 0.75,
          .attention_ratio = 0.5,
          .encode_share = 0.04,
          .context = 1024,
          .tokens = 8192};
}

TEST(Evaluate, ScoresTellRecipesApart) {
  TempFolder folder;
  cli::EvaluateOptions options{.model = kDemo,
                               .text = some_text(folder.path()),
                               .context = 192,
                               .windows = 2,
                               .dtype = kernels::DType::kF32};
  options.recipes = {kSource / "recipes" / "exact.yaml", kSource / "recipes" / "q8.yaml",
                     write_recipe(folder.path(), "four", "bits: {quantizer: embedded, width: 4}\n"),
                     write_recipe(folder.path(), "two", "bits: {quantizer: embedded, width: 2}\n")};
  int steps = 0, total = 0;
  const auto rows = cli::evaluate(options, [&](int done, int all) { steps = done, total = all; });
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  ASSERT_EQ(rows->size(), 4u);
  EXPECT_EQ(steps, total);
  const auto& [exact, q8, four, two] = std::tie((*rows)[0], (*rows)[1], (*rows)[2], (*rows)[3]);
  EXPECT_EQ(exact.kl, 0);
  EXPECT_EQ(exact.top1, 1);
  EXPECT_EQ(exact.ppl, exact.ppl_exact);
  EXPECT_EQ(exact.tokens, 2 * 96);
  EXPECT_EQ(exact.bits_per_element, 16);  // counted in bf16, whatever the engine's dtype
  EXPECT_EQ(q8.bits_per_element, 8.25);
  EXPECT_GT(q8.kl, 0);
  EXPECT_LT(q8.kl * 10, four.kl);
  EXPECT_LT(four.kl * 3, two.kl);
  EXPECT_LT(q8.ratio, four.ratio);
  EXPECT_LT(four.ratio, two.ratio);
  EXPECT_GT(four.attention_ratio, 0);
  EXPECT_GT(four.encode_share, 0);
}

// The reference has the model's own weights: what they lose by rounding adds to what the cache loses.
TEST(Evaluate, ScoresRoundedWeightsAndCacheTogether) {
  TempFolder folder;
  cli::EvaluateOptions options{
      .model = kDemo, .text = some_text(folder.path()), .context = 192, .windows = 2};
  options.recipes = {kSource / "recipes" / "exact.yaml",
                     write_recipe(folder.path(), "four", "bits: {quantizer: embedded, width: 4}\n")};
  const auto own = cli::evaluate(options, nullptr);
  options.weights = "int8";
  const auto eight = cli::evaluate(options, nullptr);
  options.weights = "int4";
  const auto four = cli::evaluate(options, nullptr);
  ASSERT_TRUE(own.ok() && eight.ok() && four.ok());
  EXPECT_EQ((*own)[0].kl, 0);
  EXPECT_GT((*eight)[0].kl, 0);
  EXPECT_GT((*four)[0].kl, 5 * (*eight)[0].kl);
  for (const auto* rows : {&*own, &*eight, &*four}) EXPECT_EQ((*rows)[0].ppl_exact, (*own)[0].ppl_exact);
  EXPECT_GT((*four)[1].kl, (*four)[0].kl) << "the cache's error comes on top";
  EXPECT_GT((*four)[1].kl, (*own)[1].kl) << "and the weights'";
  const std::string text = cli::evaluate_markdown(*four, "demo");
  EXPECT_NE(text.find("weights in int4"), std::string::npos) << text;
  EXPECT_EQ(cli::evaluate_markdown(*own, "demo").find("weights"), std::string::npos);
}

// Exact while hot: what comes back from a store answers like the recipe that it was spilled in. A little
// better, because the prompt was computed with exact pages, and the rest of the text is.
TEST(Evaluate, ARestoredPrefixIsAsGoodAsItsSpillRecipe) {
  TempFolder folder;
  cli::EvaluateOptions options{
      .model = kDemo, .text = some_text(folder.path()), .context = 512, .windows = 3};
  options.recipes = {kSource / "recipes" / "lowkey-4x.yaml", kSource / "recipes" / "exact-spill-4x.yaml",
                     kSource / "recipes" / "lowkey-8x.yaml"};
  const auto rows = cli::evaluate(options, nullptr);
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  const auto& [hot, spilled, worse] = std::tie((*rows)[0], (*rows)[1], (*rows)[2]);
  EXPECT_GT(spilled.kl, 0.2 * hot.kl);
  EXPECT_LT(spilled.kl, 1.1 * hot.kl);
  EXPECT_GT(worse.kl, 2 * spilled.kl) << "KL tells recipes apart on this text";
  EXPECT_GT(hot.ratio, 3.5 * spilled.ratio) << "on the device it is exact";
}

TEST(Evaluate, JsonHasTheseNames) {
  auto short_one = some_row("no-recall", 2, 0.1);
  short_one.recall_first = short_one.recall_later = std::nullopt;
  const std::vector<cli::EvaluateRow> rows = {some_row("a\"b", 4, 1e-5), short_one};
  const auto parsed = boost::json::parse(cli::evaluate_json(rows)).as_array();
  ASSERT_EQ(parsed.size(), 2u);
  std::set<std::string> names;
  for (const auto& [name, value] : parsed[0].as_object()) names.insert(name);
  EXPECT_EQ(names, (std::set<std::string>{"recipe", "weights", "ratio", "bits_per_element", "kl", "top1",
                                          "ppl", "ppl_exact", "recall_first", "recall_later",
                                          "attention_ratio", "encode_share", "context", "tokens"}));
  EXPECT_EQ(parsed[0].at("recipe").as_string(), "a\"b");
  EXPECT_DOUBLE_EQ(parsed[0].at("kl").to_number<double>(), 1e-5);
  EXPECT_TRUE(parsed[1].at("recall_first").is_null());
}

TEST(Evaluate, ThePlotShowsEveryRecipe) {
  const std::vector<cli::EvaluateRow> rows = {some_row("exact", 1, 0), some_row("a<b", 7, 0.02)};
  const std::string svg = cli::evaluate_svg(rows, "demo");
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_NE(svg.find(">exact<"), std::string::npos);
  EXPECT_NE(svg.find(">a&lt;b<"), std::string::npos);
  EXPECT_EQ(svg.find("a<b"), std::string::npos);
}

TEST(Evaluate, ErrorsNameWhatIsWrong) {
  TempFolder folder;
  cli::EvaluateOptions options{.model = kDemo, .text = some_text(folder.path()), .context = 100000};
  const auto rows = cli::evaluate(options, nullptr);
  ASSERT_FALSE(rows.ok());
  EXPECT_EQ(rows.error().code, Code::kUsage);
  EXPECT_NE(rows.error().message.find("1024"), std::string::npos);
}

TEST(RecallTask, HidesFactsAndFillsTheContext) {
  const auto tokenizer = coordinator::Tokenizer::load(kDemo);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  const std::vector<std::vector<int32_t>> texts(3, std::vector<int32_t>(1025, 300));
  const auto tasks = cli::make_recall_tasks(**tokenizer, texts, 1024);
  ASSERT_EQ(tasks.size(), 3u);
  std::set<std::string> contexts;
  for (const cli::RecallTask& task : tasks) {
    ASSERT_EQ(task.questions.size(), 4u);
    size_t length = task.context.size();
    const std::string context = (*tokenizer)->decode(task.context, false);
    contexts.insert(context);
    for (const auto& [question, answer] : task.questions) {
      length += question.size() + answer.size();
      const std::string asked = (*tokenizer)->decode(question, false);
      const std::string name =
          asked.substr(asked.rfind("the ") + 4, asked.rfind(" is") - asked.rfind("the ") - 4);
      const std::string said = (*tokenizer)->decode(answer, false);
      EXPECT_NE(context.find("The pass key of the " + name + " is" + said + " Remember it."),
                std::string::npos)
          << name << said;
    }
    EXPECT_EQ(length, 1024u);
  }
  EXPECT_EQ(contexts.size(), 3u);  // other names, keys and places
  EXPECT_TRUE(cli::make_recall_tasks(**tokenizer, texts, 128).empty());
}

int run(const std::string& arguments) {
  CLI::App app("", "lowkey");
  int exit_code = 0;
  cli::add_evaluate_command(app, exit_code);
  try {
    app.parse("evaluate " + arguments);
  } catch (const CLI::ParseError& error) {
    std::ostringstream sink;
    return app.exit(error, sink, sink) == 0 ? 0 : 2;
  }
  return exit_code;
}

TEST(Evaluate, WritesItsFiles) {
  TempFolder folder;
  const fs::path text = some_text(folder.path());
  EXPECT_EQ(run("--model x"), 2);
  EXPECT_EQ(run("--model x --recipe y --text z --weights int2"), 2);
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(
      run("--model " + kDemo.string() + " --recipe " + (kSource / "recipes" / "q8.yaml").string() +
          " --text " + text.string() + " --context 64 --windows 1 --out " + (folder.path() / "out").string()),
      0);
  const std::string printed = ::testing::internal::GetCapturedStdout();
  std::stringstream file;
  file << std::ifstream(folder.path() / "out" / "evaluate.md").rdbuf();
  EXPECT_EQ(printed, file.str());
  EXPECT_NE(printed.find("| q8 |"), std::string::npos);
  EXPECT_TRUE(fs::exists(folder.path() / "out" / "evaluate.json"));
  EXPECT_TRUE(fs::exists(folder.path() / "out" / "evaluate.svg"));
}

}  // namespace
}  // namespace lowkey::testing
