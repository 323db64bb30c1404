#include "cli/model_shape.h"

namespace lowkey::cli {

Result<worker::ModelConfig> served_config(const ServeConfig& settings) {
  LOWKEY_ASSIGN(config, worker::ModelConfig::read(settings.model));
  config.weights = worker::parse_weight_storage(settings.weights);
  LOWKEY_TRY(config.limit_context(settings.max_context));
  return config;
}

kvstore::ModelShape model_shape(const worker::ModelConfig& config, const Hash128& fingerprint,
                                kernels::DType dtype) {
  return {.name = config.name,
          .num_layers = config.num_layers,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .dtype = dtype,
          .kv_producer = config.kv_producer,
          .windows_or_caps = !config.windows.empty() || config.attention_soft_cap > 0,
          .fingerprint = fingerprint};
}

}  // namespace lowkey::cli
