#include "cli/evaluate.h"

#include <spdlog/fmt/fmt.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <memory>
#include <optional>
#include <thread>

#include "cli/evaluate_report.h"
#include "cli/evaluate_run.h"
#include "cli/progress.h"
#include "cli/serve_options.h"

namespace lowkey::cli {
namespace {

struct Command {
  EvaluateOptions options;
  ServeConfig held;  // how: --dtype and --weights
  std::filesystem::path out = ".";
};

int fail(const Error& error) {
  fmt::print(stderr, "lowkey evaluate: {}\n", error.message);
  return error.code == Code::kUsage ? 2 : error.code == Code::kBadInput ? 3 : 4;
}

Status write_file(const std::filesystem::path& file, const std::string& text) {
  std::ofstream stream(file, std::ios::binary);
  stream << text;
  stream.close();
  if (!stream) return Error{Code::kInternal, fmt::format("{}: cannot be written", file.string())};
  return {};
}

Status write_reports(const std::filesystem::path& folder, const std::vector<EvaluateRow>& rows,
                     const std::string& model) {
  std::error_code ec;
  std::filesystem::create_directories(folder, ec);
  LOWKEY_TRY(write_file(folder / "evaluate.md", evaluate_markdown(rows, model)));
  LOWKEY_TRY(write_file(folder / "evaluate.json", evaluate_json(rows)));
  return write_file(folder / "evaluate.svg", evaluate_svg(rows, model));
}

int run(Command& command) {
  command.options.dtype = dtype_of(command.held);
  command.options.weights = command.held.weights;
  std::optional<Progress> progress;
  const auto rows = evaluate(command.options, [&](int done, int total) {
    if (!progress) progress.emplace("evaluating", total);
    progress->advance(done);
  });
  progress.reset();
  if (!rows.ok()) return fail(rows.error());
  std::error_code ec;
  const std::string model = std::filesystem::canonical(command.options.model, ec).filename().string();
  fmt::print("{}", evaluate_markdown(*rows, model));
  const Status written = write_reports(command.out, *rows, model);
  return written.ok() ? 0 : fail(written.error());
}

}  // namespace

void add_evaluate_command(CLI::App& app, int& exit_code) {
  auto command = std::make_shared<Command>();
  EvaluateOptions& options = command->options;
  options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  auto* evaluate = app.add_subcommand(
      "evaluate", "recipes on a model and a text: quality, bytes and time against the exact cache");
  evaluate->add_option("--model", options.model, "Hugging Face model folder")->required();
  evaluate->add_option("--recipe", options.recipes, "recipe files")->required();
  evaluate
      ->add_option("--text", options.text, "held-out text: a file or folder of .txt or .jsonl, .xz or not")
      ->required();
  evaluate->add_option("--profile", options.profile,
                       "of the recipes that need one; else <model>/profiles/<recipe>.profile.safetensors");
  evaluate->add_option("--context", options.context, "tokens of a window; else the model's own context")
      ->check(CLI::PositiveNumber);
  evaluate->add_option("--windows", options.windows, "cut evenly from the text")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  add_serve_setting(*evaluate, "dtype", command->held);
  add_serve_setting(*evaluate, "weights", command->held);
  evaluate->add_option("--threads", options.threads, "of the compute pool")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  evaluate->add_option("--out", command->out, "folder of evaluate.{md,json,svg}")->capture_default_str();
  evaluate->callback([command, &exit_code] { exit_code = run(*command); });
}

}  // namespace lowkey::cli
