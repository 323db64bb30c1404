// A model as it is served, and what the KV cache has to know of it.
#pragma once

#include "base/serve_config.h"
#include "kvstore/recipe/resolve.h"
#include "worker/model/model_config.h"

namespace lowkey::cli {

// The model's configuration with what the settings say of it: weights, context. Errors as ModelConfig::read
// and limit_context.
Result<worker::ModelConfig> served_config(const ServeConfig& settings);

kvstore::ModelShape model_shape(const worker::ModelConfig& config, const Hash128& fingerprint,
                                kernels::DType dtype);

}  // namespace lowkey::cli
