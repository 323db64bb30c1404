// What the float64 twin (twin.py) is compared with, as raw little-endian arrays on files.
//
//   twin_probe windows MODEL TEXT LENGTH COUNT OUT      int32 [count][length]: what calibrate and evaluate
//   read twin_probe logits MODEL RECIPE PROFILE TOKENS PROMPT OUT
//                                        f32 [tokens - prompt][vocabulary], fp32 engine; PROFILE may be "-"
//   twin_probe bytes RECIPE LAYERS KV_HEADS HEAD_DIM PROMPT GENERATED
//                                        prints all bytes of such a sequence in bf16, and those without
//                                        the buffer of its incomplete page
#include <spdlog/fmt/fmt.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cli/model_shape.h"
#include "cli/text_source.h"
#include "worker/offline/recipe_sequence.h"

namespace lowkey {
namespace {

using Arguments = std::vector<std::string>;

template <class T>
void write(const std::string& file, const std::vector<T>& values) {
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(T)));
}

std::vector<int32_t> read_tokens(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(stream)), {});
  std::vector<int32_t> tokens(bytes.size() / sizeof(int32_t));
  bytes.copy(reinterpret_cast<char*>(tokens.data()), tokens.size() * sizeof(int32_t));
  return tokens;
}

Status windows(const Arguments& a) {
  LOWKEY_ASSIGN(tokenizer, coordinator::Tokenizer::load(a[0]));
  LOWKEY_ASSIGN(found, cli::read_windows(*tokenizer, a[1], std::stoi(a[2]), std::stoi(a[3])));
  std::vector<int32_t> all;
  for (const auto& window : found) all.insert(all.end(), window.begin(), window.end());
  write(a[4], all);
  return {};
}

Status logits(const Arguments& a) {
  LOWKEY_ASSIGN(runner, worker::WindowRunner::load(a[0], {.dtype = kernels::DType::kF32}));
  LOWKEY_ASSIGN(recipe, kvstore::read_recipe(a[1]));
  LOWKEY_ASSIGN(fingerprint, worker::model_fingerprint(a[0]));
  LOWKEY_ASSIGN(cache, kvstore::resolve_files(
                           recipe, a[2] == "-" ? "" : a[2], a[0],
                           cli::model_shape(runner->config(), fingerprint, kernels::DType::kF32), 0, 1));
  const std::vector<int32_t> tokens = read_tokens(a[3]);
  const int prompt = std::stoi(a[4]);
  worker::RecipeSequence sequence(*runner, cache);
  std::vector<float> rows;
  LOWKEY_TRY(sequence.prompt(std::span(tokens).first(prompt), prompt, nullptr));
  LOWKEY_TRY(sequence.extend(std::span(tokens).subspan(prompt), prompt, [&](int, std::span<const float> row) {
    rows.insert(rows.end(), row.begin(), row.end());
  }));
  write(a[5], rows);
  return {};
}

Status bytes(const Arguments& a) {
  LOWKEY_ASSIGN(recipe, kvstore::read_recipe(a[0]));
  const kvstore::ModelShape shape{.name = "shape",
                                  .num_layers = std::stoi(a[1]),
                                  .num_kv_heads = std::stoi(a[2]),
                                  .head_dim = std::stoi(a[3])};
  LOWKEY_ASSIGN(cache, kvstore::resolve(recipe, nullptr, shape, 0, 1));
  const uint64_t all = cache.bytes_for(std::stoull(a[4]), std::stoull(a[5]));
  fmt::print("{} {}\n", all, all - cache.pages.tail_bytes);
  return {};
}

Status run(const std::string& what, const Arguments& arguments) {
  if (what == "windows" && arguments.size() == 5) return windows(arguments);
  if (what == "logits" && arguments.size() == 6) return logits(arguments);
  if (what == "bytes" && arguments.size() == 6) return bytes(arguments);
  return Error{Code::kUsage, "expected windows, logits or bytes with their arguments (see the file's head)"};
}

}  // namespace
}  // namespace lowkey

int main(int argc, char** argv) {
  const auto status = lowkey::run(argc > 1 ? argv[1] : "", {argv + std::min(argc, 2), argv + argc});
  if (status.ok()) return 0;
  fmt::print(stderr, "twin_probe: {}\n", status.error().message);
  return 1;
}
