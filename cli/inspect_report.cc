#include "cli/inspect_report.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <vector>

#include "base/bytes.h"
#include "cli/model_shape.h"
#include "worker/model/decoder_weights.h"
#include "worker/model/model_config.h"
#include "worker/model/safetensors_reader.h"

namespace lowkey::cli {

using kernels::PageLayout;
using worker::ModelConfig;

namespace {

constexpr std::array<uint64_t, 4> kLengths = {512, 2048, 8192, 32768};

std::string describe_model(const ModelConfig& config, uint64_t parameters, size_t files,
                           const Hash128& fingerprint) {
  const char* family = config.family == worker::Family::kQwen2 ? "Qwen2" : "Llama";
  std::string text = fmt::format(
      "{}: {} type, {} layers, hidden {}, {} query and {} KV heads of {}, ffn {}, vocabulary {}, context "
      "{}\n",
      config.name, family, config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads,
      config.head_dim, config.intermediate_size, config.vocab_size, config.max_positions);
  text += fmt::format("  RoPE theta {}{}, {} head, end of text [{}]\n", config.rope_theta,
                      config.rope_scaling.type == worker::RopeScaling::Type::kLlama3
                          ? fmt::format(" (llama3 scaling, factor {})", config.rope_scaling.factor)
                          : "",
                      config.tie_word_embeddings ? "tied" : "untied", fmt::join(config.eos_token_ids, ", "));
  return text + fmt::format("  {} parameters in {} file{}, fingerprint {}\n", parameters, files,
                            files == 1 ? "" : "s", fingerprint.hex());
}

std::string weights_table(const ModelConfig& config, kernels::DType dtype) {
  std::string text = fmt::format("\nWeights per rank ({})\n", kernels::to_string(dtype));
  for (int tp = 1; tp <= config.num_kv_heads; ++tp) {
    if (!worker::check_tensor_parallel(config, 0, tp).ok()) continue;
    uint64_t most = 0;
    for (int rank = 0; rank < tp; ++rank)
      most = std::max(most, worker::weight_bytes(config, rank, tp, dtype));
    text += fmt::format("  TP {:<3} {:>10}\n", tp, format_bytes(most));
  }
  return text;
}

// Of one layer's K or V, all heads, in one level: what a kernel reads in one go.
uint64_t smallest_piece(const PageLayout& layout) {
  uint64_t least = UINT64_MAX;
  for (int level = 0; level < layout.num_levels; ++level)
    least = std::min<uint64_t>(least, layout.slab_bytes[level] / (uint64_t(layout.num_banks) * 2));
  return least;
}

std::string cache_table(std::span<const PageLayout> layouts, int tp) {
  std::string text = fmt::format(
      "\nCache of one sequence on {} rank{}, and its ratio to plain bf16\n"
      "  {:<16}{:>12}{:>10}",
      tp, tp == 1 ? "" : "s", "recipe", "bytes/token", "piece");
  for (const uint64_t length : kLengths) text += fmt::format("{:>19}", fmt::format("{} tokens", length));
  text += '\n';
  for (const PageLayout& layout : layouts) {
    text += fmt::format("  {:<16}{:>12.1f}{:>10}", layout.recipe, layout.bytes_per_token() * tp,
                        format_bytes(smallest_piece(layout)));
    for (const uint64_t length : kLengths) {
      const uint64_t bytes = layout.bytes_for_tokens(length);
      text +=
          fmt::format("{:>19}", fmt::format("{} {:5.2f}x", format_bytes(bytes * tp),
                                            double(layout.bf16_bytes_for_tokens(length)) / double(bytes)));
    }
    text += '\n';
  }
  text += "  piece: contiguous bytes of one page, layer and side; below 1 KiB memory bandwidth halves\n";
  return text;
}

std::string fit_table(std::span<const PageLayout> layouts, const InspectOptions& options) {
  const uint64_t per_rank = options.kv_bytes / options.tp;
  std::string text = fmt::format("\nWhat fits into --kv-bytes {} ({} on each of {} rank{})\n  {:<16}{:>22}",
                                 format_bytes(options.kv_bytes), format_bytes(per_rank), options.tp,
                                 options.tp == 1 ? "" : "s", "recipe", "one sequence, tokens");
  for (const uint64_t length : kLengths) text += fmt::format("{:>14}", fmt::format("{} x {}", "n", length));
  text += '\n';
  for (const PageLayout& layout : layouts) {
    text += fmt::format("  {:<16}{:>22}", layout.recipe, tokens_that_fit(layout, per_rank));
    for (const uint64_t length : kLengths)
      text += fmt::format("{:>14}", per_rank / layout.bytes_for_tokens(length));
    text += '\n';
  }
  return text;
}

}  // namespace

kvstore::Recipe q8_recipe() {
  kvstore::Recipe recipe{.name = "q8", .sink_tokens = 4};
  recipe.key.quantizer = kernels::Quantizer::kEmbedded;
  recipe.key.width = 8;
  recipe.value = recipe.key;
  return recipe;
}

uint64_t tokens_that_fit(const PageLayout& layout, uint64_t bytes) {
  uint64_t fits = 0, too_many = 1;
  while (layout.bytes_for_tokens(too_many) <= bytes) {
    fits = too_many;
    too_many *= 2;
  }
  while (too_many - fits > 1) {
    const uint64_t middle = fits + (too_many - fits) / 2;
    (layout.bytes_for_tokens(middle) <= bytes ? fits : too_many) = middle;
  }
  return fits;
}

Result<std::string> inspect_report(const std::filesystem::path& model_dir, const InspectOptions& options,
                                   std::span<const kvstore::Recipe> recipes) {
  LOWKEY_ASSIGN(config, ModelConfig::read(model_dir));
  LOWKEY_TRY(worker::check_tensor_parallel(config, 0, options.tp));
  LOWKEY_ASSIGN(reader, worker::SafetensorsReader::open(model_dir));
  LOWKEY_ASSIGN(fingerprint, worker::model_fingerprint(model_dir));
  std::vector<PageLayout> layouts;
  for (const kvstore::Recipe& recipe : recipes) {
    LOWKEY_ASSIGN(
        cache, kvstore::resolve_files(recipe, {}, model_dir, model_shape(config, fingerprint, options.dtype),
                                      0, options.tp));
    layouts.push_back(std::move(cache.pages));
  }
  return describe_model(config, reader.num_parameters(), reader.num_files(), fingerprint) +
         weights_table(config, options.dtype) + cache_table(layouts, options.tp) +
         fit_table(layouts, options);
}

}  // namespace lowkey::cli
