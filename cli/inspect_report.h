// What `lowkey inspect MODEL_DIR` prints of a model, as text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/result.h"
#include "cli/inspect_recipe.h"
#include "worker/model/model_config.h"

namespace lowkey::cli {

struct InspectOptions {
  int tp = 1;
  kernels::DType dtype = kernels::DType::kBf16;
  worker::WeightStorage weights = worker::WeightStorage::kAuto;
  uint64_t kv_bytes = 0;          // of all ranks together, as serve's --kv-bytes
  std::filesystem::path profile;  // of the recipes that need one; empty: beside the model
};

// The compressed recipe that is always shown: as recipes/q8.yaml.
kvstore::Recipe q8_recipe();

// Model, weights per rank for every possible TP, cache bytes and their ratio to plain bf16 for exact, q8 and
// every one of `recipes`, what fits into the budget, and the description of each of `recipes`. Reads headers
// and samples of the weight files only, unless weights are rounded to few bits: then it loads them all.
// Errors: kBadInput, kUsage.
Result<std::string> inspect_report(const std::filesystem::path& model_dir, const InspectOptions& options,
                                   std::span<const kvstore::Recipe> recipes);

// The longest sequence whose bytes on one rank stay within `bytes`; 0 when not even one token does. With an
// archive: the longest prompt, which is exact until it is complete.
uint64_t tokens_that_fit(const kvstore::ResolvedCache& cache, uint64_t bytes);

}  // namespace lowkey::cli
