#include "cli/inspect_report.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "cli/model_shape.h"
#include "kernels/cpu/cpu_backend.h"
#include "worker/model/decoder_weights.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"
#include "worker/model/weight_source.h"

namespace lowkey::cli {

using kvstore::ResolvedCache;
using worker::ModelConfig;

namespace {

constexpr uint64_t kGoodPiece = 1024;  // smaller ones halve the bandwidth

std::string describe_windows(const ModelConfig& config) {
  if (config.windows.empty()) return "";
  const auto layers = std::ranges::count_if(config.windows, [](int window) { return window > 0; });
  const bool all = config.widest_window() > 0;
  return fmt::format("  window of {} tokens in {} of {} layers{}{}\n", std::ranges::max(config.windows),
                     layers, config.num_layers,
                     config.local_rope ? ", RoPE " + config.local_rope->describe() : "",
                     all ? ": pages behind it are given back" : ": pages are kept for the others");
}

std::string describe_model(const ModelConfig& config, uint64_t parameters, size_t files,
                           const Hash128& fingerprint) {
  std::string text = fmt::format(
      "{}: {} type, {} layers, hidden {}, {} query and {} KV heads of {}, ffn {}, vocabulary {}, context "
      "{}\n",
      config.name, config.traits().title, config.num_layers, config.hidden_size, config.num_heads,
      config.num_kv_heads, config.head_dim, config.intermediate_size, config.vocab_size,
      config.max_positions);
  text += fmt::format("  RoPE {}, {} head, end of text [{}]\n", config.rope.describe(),
                      config.tie_word_embeddings ? "tied" : "untied", fmt::join(config.eos_token_ids, ", "));
  text += describe_windows(config);
  return text + fmt::format("  {} parameters in {} file{}, fingerprint {}\n", parameters, files,
                            files == 1 ? "" : "s", fingerprint.hex());
}

// Of weights that are rounded: loads them.
Result<std::string> rounding_report(const std::filesystem::path& model, const ModelConfig& config) {
  if (!worker::rounds_weights(config.weights)) return std::string();
  const auto backend = kernels::make_cpu_backend({.threads = 1});
  LOWKEY_ASSIGN(loaded, worker::Model::load(model, config, 0, 1, *backend));
  return fmt::format("  relative RMS error: {}\n", loaded->weight_report().describe());
}

std::string weights_table(const ModelConfig& config, kernels::DType dtype) {
  const char* few_bits = config.weights == worker::WeightStorage::kInt8 ? ", matrices in 8 bits"
                         : config.weights == worker::WeightStorage::kInt4
                             ? ", matrices in 4 bits, the vocabulary in 8"
                             : "";
  std::string text = fmt::format("\nWeights per rank ({}{})\n", kernels::to_string(dtype), few_bits);
  for (int tp = 1; tp <= config.num_kv_heads; ++tp) {
    if (!worker::check_tensor_parallel(config, 0, tp).ok()) continue;
    uint64_t most = 0;
    for (int rank = 0; rank < tp; ++rank)
      most = std::max(most, worker::weight_bytes(config, rank, tp, dtype));
    text += fmt::format("  TP {:<3} {:>10}\n", tp, format_bytes(most));
  }
  return text;
}

std::string cache_table(std::span<const ResolvedCache> caches, int tp) {
  std::string text = fmt::format(
      "\nCache of one sequence on {} rank{}, and how many times smaller than plain bf16\n  {:<20}{:>9}{:>9}",
      tp, tp == 1 ? "" : "s", "recipe", "B/token", "piece");
  for (const uint64_t length : kInspectLengths)
    text += fmt::format("{:>15}", fmt::format("{} tokens", length));
  text += '\n';
  bool thin = false;
  for (const ResolvedCache& cache : caches) {
    const uint64_t piece = smallest_piece(cache);
    thin |= piece < kGoodPiece;
    const auto per_token = double(cache.bytes_for(65536, 0) - cache.bytes_for(32768, 0)) / 32768;
    text += fmt::format("  {:<20}{:>9.0f}{:>9}", cache.recipe.name, per_token * tp,
                        format_bytes(piece) + (piece < kGoodPiece ? "!" : ""));
    for (const uint64_t length : kInspectLengths) {
      const uint64_t bytes = cache.bytes_for(length, 0);
      const double ratio = double(cache.pages.bf16_bytes_for_tokens(length)) / double(bytes);
      text += fmt::format("{:>15}", fmt::format("{} {:.2f}x", format_bytes(bytes * tp), ratio));
    }
    text += '\n';
  }
  text +=
      "  piece: contiguous bytes of one page, layer and side, the smallest; from 1 KiB on memory is read at "
      "speed";
  if (thin)
    text += "\n  ! below 1 KiB memory bandwidth halves: more page_tokens, fewer ranks or fewer levels help";
  return text + '\n';
}

std::string fit_table(std::span<const ResolvedCache> caches, const InspectOptions& options) {
  const uint64_t per_rank = options.kv_bytes / options.tp;
  std::string text = fmt::format("\nWhat fits into --kv-bytes {} ({} on each of {} rank{})\n  {:<20}{:>22}",
                                 format_bytes(options.kv_bytes), format_bytes(per_rank), options.tp,
                                 options.tp == 1 ? "" : "s", "recipe", "one sequence, tokens");
  for (const uint64_t length : kInspectLengths)
    text += fmt::format("{:>14}", fmt::format("{} x {}", "n", length));
  text += '\n';
  for (const ResolvedCache& cache : caches) {
    text += fmt::format("  {:<20}{:>22}", cache.recipe.name, tokens_that_fit(cache, per_rank));
    for (const uint64_t length : kInspectLengths)
      text += fmt::format("{:>14}", per_rank / cache.bytes_for(length, 0));
    text += '\n';
  }
  return text;
}

// All ranks of one recipe.
Result<std::vector<ResolvedCache>> resolve_ranks(const kvstore::Recipe& recipe,
                                                 const kvstore::Profile* profile,
                                                 const kvstore::Profile* spill_profile,
                                                 const kvstore::ModelShape& model, int tp) {
  std::vector<ResolvedCache> ranks;
  for (int rank = 0; rank < tp; ++rank) {
    LOWKEY_ASSIGN(cache, kvstore::resolve(recipe, profile, model, rank, tp, spill_profile));
    ranks.push_back(std::move(cache));
  }
  return ranks;
}

// Table rows of all recipes, and the description of the given ones.
Status inspect_recipe(const kvstore::Recipe& recipe, const kvstore::ModelShape& model,
                      const std::filesystem::path& model_dir, const InspectOptions& options,
                      std::vector<ResolvedCache>* caches, std::string* description) {
  std::optional<kvstore::Profile> profile;
  std::string source;
  if (recipe.needs_profile()) {
    LOWKEY_ASSIGN(read, kvstore::read_profile(recipe, options.profile, model_dir, model));
    profile = std::move(read);
    const auto file = kvstore::profile_file(recipe, options.profile, model_dir);
    source = fmt::format("{}\n            {} basis, join {}; {}", file.string(), profile->basis,
                         profile->join, profile->origin);
  }
  LOWKEY_ASSIGN(spilled, kvstore::read_spill_profile(recipe, options.profile, model_dir, model));
  LOWKEY_ASSIGN(ranks, resolve_ranks(recipe, profile ? &*profile : nullptr, spilled ? &*spilled : nullptr,
                                     model, options.tp));
  if (description != nullptr) *description += describe_recipe(ranks, source);
  caches->push_back(std::move(ranks[0]));
  return {};
}

}  // namespace

kvstore::Recipe q8_recipe() {
  kvstore::Recipe recipe{.name = "q8", .sink_tokens = 4};
  recipe.key.quantizer = kernels::Quantizer::kEmbedded;
  recipe.key.width = 8;
  recipe.value = recipe.key;
  return recipe;
}

uint64_t tokens_that_fit(const ResolvedCache& cache, uint64_t bytes) {
  const auto fit = [&](uint64_t tokens) { return cache.pages.bytes_for_tokens(tokens) <= bytes; };
  uint64_t fits = 0, too_many = 1;
  while (fit(too_many)) {
    fits = too_many;
    too_many *= 2;
  }
  while (too_many - fits > 1) {
    const uint64_t middle = fits + (too_many - fits) / 2;
    (fit(middle) ? fits : too_many) = middle;
  }
  return fits;
}

Result<std::string> inspect_report(const std::filesystem::path& model_dir, const InspectOptions& options,
                                   std::span<const kvstore::Recipe> recipes) {
  LOWKEY_ASSIGN(config, ModelConfig::read(model_dir));
  config.weights = options.weights;
  LOWKEY_TRY(worker::check_tensor_parallel(config, 0, options.tp));
  LOWKEY_ASSIGN(weights, worker::WeightSource::open(model_dir, config));
  LOWKEY_ASSIGN(fingerprint, worker::model_fingerprint(model_dir));
  const kvstore::ModelShape model = model_shape(config, fingerprint, options.dtype);
  std::vector<ResolvedCache> caches;
  std::string descriptions;
  for (const kvstore::Recipe& recipe : {kvstore::Recipe{}, q8_recipe()})
    LOWKEY_TRY(inspect_recipe(recipe, model, model_dir, options, &caches, nullptr));
  for (const kvstore::Recipe& recipe : recipes)
    LOWKEY_TRY(inspect_recipe(recipe, model, model_dir, options, &caches, &descriptions));
  LOWKEY_ASSIGN(rounding, rounding_report(model_dir, config));
  return describe_model(config, weights->num_parameters(), weights->num_files(), fingerprint) +
         weights_table(config, options.dtype) + rounding + cache_table(caches, options.tp) +
         fit_table(caches, options) + descriptions;
}

}  // namespace lowkey::cli
