#include "cli/train_model.h"

#include <dlfcn.h>
#include <spdlog/fmt/fmt.h>

#include "kernels/page/dtype.h"
#include "worker/model/model_config.h"
#include "worker/model/weight_source.h"

namespace lowkey::cli {

Result<std::unique_ptr<kvstore::Trainer>> load_trainer() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  return load_trainer(self.parent_path() / kvstore::kTrainModule);
}

Result<std::unique_ptr<kvstore::Trainer>> load_trainer(const std::filesystem::path& module) {
  std::error_code error;
  if (!std::filesystem::exists(module, error))
    return Error{Code::kUsage, fmt::format("training needs {}: build with libtorch (Debian: libtorch-dev)",
                                           module.string())};
  // Never closed: libtorch does not survive it.
  void* const handle = dlopen(module.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return Error{Code::kUsage, fmt::format("training: {}", dlerror())};
  const auto interface =
      reinterpret_cast<kvstore::TrainInterfaceFunction>(dlsym(handle, "lowkey_train_interface"));
  const auto make = reinterpret_cast<kvstore::NewTrainerFunction>(dlsym(handle, "lowkey_new_trainer"));
  if (interface == nullptr || make == nullptr || interface() != kvstore::kTrainInterface)
    return Error{Code::kUsage, fmt::format("training: {}: expected interface {}, found {}", module.string(),
                                           kvstore::kTrainInterface, interface ? interface() : 0)};
  return std::unique_ptr<kvstore::Trainer>(make());
}

namespace {

// What the trainer's own decoder (kvstore/calibrate/train) does not have; null: it has all.
const char* untrainable(const worker::ModelConfig& config) {
  const worker::FamilyTraits& traits = config.traits();
  if (traits.gemma) return "Gemma's norms";
  if (traits.qk_norm) return "norms of queries and keys";
  if (traits.fused_projections) return "fused projections";
  if (!config.windows.empty()) return "a sliding window";
  if (config.activation != kernels::Activation::kSilu) return "another activation than silu";
  if (config.rope.rotated != 1) return "heads rotated in part";
  if (config.rope.table(config.head_dim, config.max_positions).attention_factor != 1)
    return "a scaling of RoPE that scales attention";
  return nullptr;
}

}  // namespace

Result<kvstore::TrainModel> train_model(const std::filesystem::path& model_dir) {
  const Result<worker::ModelConfig> config = worker::ModelConfig::read(model_dir);
  if (!config.ok()) return config.error();
  if (const char* what = untrainable(*config))
    return Error{Code::kUsage, fmt::format("{}: training bases: expected a Llama-type decoder, found {}",
                                           config->name, what)};
  Result<std::unique_ptr<worker::WeightSource>> opened = worker::WeightSource::open(model_dir, *config);
  if (!opened.ok()) return opened.error();
  const std::shared_ptr<const worker::WeightSource> reader = std::move(opened).value();
  const kernels::RopeTable rope = config->rope.table(config->head_dim, config->max_positions);
  return kvstore::TrainModel{
      .hidden_size = config->hidden_size,
      .intermediate_size = config->intermediate_size,
      .num_layers = config->num_layers,
      .num_heads = config->num_heads,
      .num_kv_heads = config->num_kv_heads,
      .head_dim = config->head_dim,
      .vocab_size = config->vocab_size,
      .max_positions = config->max_positions,
      .rms_norm_eps = config->rms_norm_eps,
      .rope_inv_freq = rope.inv_freq,
      .kv_producer = config->kv_producer,
      .tied = config->tie_word_embeddings,
      .qkv_bias = config->qkv_bias,
      .o_bias = config->output_bias,
      .mlp_bias = config->mlp_bias,
      .weight = [reader](const std::string& name, int64_t rows, int64_t cols) -> Result<std::vector<float>> {
        const Result<worker::TensorView> view =
            rows == 1 ? reader->vector(name, cols) : reader->matrix(name, rows, cols);
        if (!view.ok()) return view.error();
        std::vector<float> values(static_cast<size_t>(rows * cols));
        for (size_t i = 0; i < values.size(); ++i)
          values[i] = kernels::load_element(view->data, view->dtype, i);
        reader->release(*view);
        return values;
      }};
}

}  // namespace lowkey::cli
