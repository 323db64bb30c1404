#include "cli/calibrate.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>
#include <thread>

#include "cli/calibration.h"
#include "cli/serve_options.h"

namespace lowkey::cli {
namespace {

struct Command {
  CalibrationOptions options;
  ServeConfig held;  // how: --weights
  std::string out;
};

// "4", or "4.5-3-1.85": of each level.
std::optional<std::vector<double>> ratios_of(const std::string& word) {
  std::vector<double> ratios;
  const char *at = word.data(), *const end = at + word.size();
  for (;;) {
    double ratio = 0;
    const auto [next, error] = std::from_chars(at, end, ratio, std::chars_format::fixed);
    if (error != std::errc() || !(ratio > 0) || std::ssize(ratios) == kernels::kMaxLevels)
      return std::nullopt;
    ratios.push_back(ratio);
    if (next == end) return ratios;
    if (*next != '-') return std::nullopt;
    at = next + 1;
  }
}

int fail(const Error& error) {
  fmt::print(stderr, "lowkey calibrate: {}\n", error.message);
  return error.code == Code::kUsage ? 2 : error.code == Code::kBadInput ? 3 : 4;
}

int run(Command& command) {
  command.options.weights = command.held.weights;
  // Before minutes of work: is there a place for the result?
  const auto folder = std::filesystem::absolute(command.out).parent_path();
  if (!std::filesystem::is_directory(folder))
    return fail(
        {Code::kUsage, fmt::format("--out: expected a folder, found none: {}", folder.string()), "out"});
  const auto result = calibrate(command.options);
  if (!result.ok()) return fail(result.error());
  const auto written = result->profile.write(command.out);
  if (!written.ok()) return fail(written.error());
  fmt::print("{}: {} bases of {} stored vectors, {}\n", command.out, result->profile.basis,
             result->profile.vectors.size(), result->profile.origin);
  fmt::print("{:<15} {:>8} {:>14} {:>14}\n", "budget", "ratio", "bits/element", "KL there");
  for (const BudgetReport& budget : result->budgets)
    fmt::print("{:<15} {:>7.2f}x {:>14.3f} {:>14.5f}\n", budget.name, budget.ratio, budget.bits_per_element,
               budget.loss);
  return 0;
}

}  // namespace

void add_calibrate_command(CLI::App& app, int& exit_code) {
  auto command = std::make_shared<Command>();
  CalibrationOptions& options = command->options;
  options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  auto* calibrate =
      app.add_subcommand("calibrate", "make a profile: bases, scales and budgets for one model");
  calibrate->add_option("--model", options.model_dir, "Hugging Face model folder")->required();
  calibrate->add_option("--text", options.text, "UTF-8 text or .jsonl[.xz] with a `text` field; or a folder")
      ->required();
  calibrate->add_option("--out", command->out, "the profile's file")->required();
  calibrate->add_option("--recipe", options.recipe,
                        "recipe file that says which bases, which heads joined, and whether codes are used");
  calibrate
      ->add_option_function<std::vector<std::string>>(
          "--budget",
          [&options](const std::vector<std::string>& words) {
            options.budgets.clear();
            for (const std::string& word : words) options.budgets.push_back(*ratios_of(word));
          },
          "all-bytes ratio at 2,048 tokens, of several levels 4.5-3-1.85, the first level's first; or the "
          "share "
          "of features kept where the recipe has no codes [4 6 8 10 4.5-3-1.85; 0.75 0.5 0.4 0.25]")
      ->check(CLI::Validator(
          [](const std::string& word) {
            return ratios_of(word) ? std::string() : fmt::format("expected RATIO or R1-R2, found {}", word);
          },
          "RATIO"));
  calibrate->add_option("--tokens", options.tokens, "of text")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  auto* train = calibrate->add_flag("--train", options.train, "train the bases end to end (needs libtorch)");
  calibrate->add_option("--steps", options.train_steps, "of training [as many as suit the model]")
      ->needs(train)
      ->check(CLI::PositiveNumber);
  add_serve_setting(*calibrate, "weights", command->held);
  calibrate->add_option("--threads", options.threads, "of the compute pool")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  calibrate->callback([command, &exit_code] { exit_code = run(*command); });
}

}  // namespace lowkey::cli
