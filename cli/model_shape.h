// What the KV cache has to know of a model.
#pragma once

#include "kvstore/recipe/resolve.h"
#include "worker/model/model_config.h"

namespace lowkey::cli {

kvstore::ModelShape model_shape(const worker::ModelConfig& config, const Hash128& fingerprint,
                                kernels::DType dtype);

}  // namespace lowkey::cli
