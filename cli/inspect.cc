#include "cli/inspect.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "cli/inspect_report.h"
#include "cli/serve_options.h"
#include "kvstore/recipe/recipe.h"
#include "worker/device/device.h"
#include "worker/model/random_model.h"

namespace lowkey::cli {
namespace {

struct Command {
  std::string model_dir;
  int tp = 1;
  ServeConfig held;  // how: --dtype and --weights
  std::string kv_bytes = "1GiB";
  std::vector<std::string> recipes;
  std::string profile;
  std::string random_shape;
  std::string out_dir;
  uint64_t seed = 0;
};

int fail(const Error& error) {
  fmt::print(stderr, "lowkey inspect: {}\n", error.message);
  return error.code == Code::kUsage ? 2 : error.code == Code::kBadInput ? 3 : 4;
}

int write_random(const Command& command) {
  const auto shape = worker::parse_shape(command.random_shape);
  if (!shape.ok()) return fail(shape.error());
  const auto written = worker::write_random_model(*shape, command.seed, command.out_dir);
  if (!written.ok()) return fail(written.error());
  fmt::print("{}: random weights of shape {}, seed {}\n", command.out_dir, command.random_shape,
             command.seed);
  return 0;
}

// What a worker on this host would compute on, --device auto.
std::string describe_devices() {
  const worker::DeviceSurvey survey = worker::DeviceSurvey::make();
  if (survey.devices.empty()) return "the CPU (no GPU: " + survey.reason + ")";
  std::string text;
  for (const kernels::DeviceInfo& device : survey.devices)
    text += fmt::format("{}cuda:{} {}, {}, {}", text.empty() ? "" : "; ", device.index, device.name,
                        format_bytes(device.total_bytes), device.driver);
  return text;
}

int report(const Command& command) {
  InspectOptions options{.tp = command.tp,
                         .dtype = dtype_of(command.held),
                         .weights = worker::parse_weight_storage(command.held.weights),
                         .kv_bytes = *parse_bytes(command.kv_bytes),
                         .profile = command.profile};
  std::vector<kvstore::Recipe> recipes;
  for (const std::string& file : command.recipes) {
    const auto recipe = kvstore::read_recipe(file);
    if (!recipe.ok()) return fail(recipe.error());
    recipes.push_back(*recipe);
  }
  const auto text = inspect_report(command.model_dir, options, recipes);
  if (!text.ok()) return fail(text.error());
  fmt::print("{}\nDevices: {}\n", *text, describe_devices());
  return 0;
}

std::string check_bytes(const std::string& text) {
  const auto bytes = parse_bytes(text);
  return bytes.ok() ? "" : bytes.error().message;
}

}  // namespace

void add_inspect_command(CLI::App& app, int& exit_code) {
  auto command = std::make_shared<Command>();
  auto* inspect =
      app.add_subcommand("inspect", "what a model is and what fits; or a random model of a shape");
  auto* model = inspect->add_option("MODEL", command->model_dir, "Hugging Face model folder, or GGUF file");
  inspect->add_option("--tp", command->tp, "ranks of a replica")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  add_serve_setting(*inspect, "dtype", command->held);
  add_serve_setting(*inspect, "weights", command->held);
  inspect->add_option("--kv-bytes", command->kv_bytes, "cache of all ranks together")
      ->capture_default_str()
      ->check(check_bytes);
  inspect
      ->add_option("--recipe", command->recipes,
                   "recipe file to describe, beside exact and q8; may be repeated")
      ->allow_extra_args(false);  // what follows the file is MODEL
  inspect->add_option(
      "--profile", command->profile,
      "profile file of these recipes (default: <model>/profiles/<recipe>.profile.safetensors)");
  auto* random =
      inspect
          ->add_option("--random", command->random_shape,
                       "write a model with random weights instead: 135M, 1B, tiny, or key=value,...")
          ->excludes(model);
  auto* out = inspect->add_option("--out", command->out_dir, "its folder, empty or absent")->needs(random);
  random->needs(out);
  inspect->add_option("--seed", command->seed, "of the random weights")->capture_default_str()->needs(random);
  inspect->callback([inspect, command, &exit_code] {
    if (command->model_dir.empty() && command->random_shape.empty()) {
      fmt::print(stderr, "lowkey inspect: expected MODEL, or --random SHAPE --out DIR\n");
      exit_code = 2;
      return;
    }
    exit_code = command->random_shape.empty() ? report(*command) : write_random(*command);
  });
}

}  // namespace lowkey::cli
